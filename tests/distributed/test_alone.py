"""A stage's folder is one job's, however many ranks that has: rank 0 holds the lock, and the others are told."""

import threading
import time
from pathlib import Path

import pytest

from fedscale import lock
from fedscale.runs import StageFolder
from fedscale.session import Session
from tests.ranks import ranks

pytestmark = pytest.mark.slow

RANK = """
import os, sys
from pathlib import Path
from fedscale import lock
from fedscale.distributed.alone import alone
from fedscale.distributed.mesh import RankLost
from fedscale.errors import UserError
from fedscale.progress import SilentReporter
from fedscale.runs import StageFolder
from fedscale.session import Session


class Telling(SilentReporter):
    def say(self, line):
        Path(f"{sys.argv[1]}.told").touch()


lock.PATIENCE = 0.5
folder, wait = StageFolder(Path(sys.argv[1]), {"seed": 1}), sys.argv[2] == "wait"
try:
    with alone(folder, "federate", Session(Telling()), "runs/x", wait, 60) as session:
        owner = lock.owner_of(folder.lock)
        owned = owner is not None and owner.rank == 0
        print("entered" if session else "complete", owned, flush=True)
except (UserError, RankLost) as error:
    print(type(error).__name__, error, flush=True)
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "rank.py").write_text(RANK)
    return tmp_path / "rank.py"


def test_two_ranks_have_a_free_folder_and_leave_no_lock(script: Path, tmp_path: Path) -> None:
    done = ranks(2, script, tmp_path / "federate", "refuse")
    assert done.stdout == "entered True\nentered True\n", done.stdout + done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "federate").iterdir()] == ["inputs.json"]


def test_rank_0_is_refused_with_the_owners_name_and_tells_the_others(script: Path, tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "federate", {"seed": 1})
    with lock.held(folder.lock, folder.path, Session()):
        done = ranks(2, script, folder.path, "refuse")
    first, second = done.stdout.splitlines()
    line = f"{folder.path}: another process (pid "
    assert first.startswith(f"UserError {line}") and "works on it; wait for its end, or stop it" in first
    assert second.startswith("RankLost federate: rank 0 ") and f"ended with UserError: {line}" in second
    assert list(folder.path.iterdir()) == [], "nothing is written before the lock is held"


def test_two_ranks_wait_and_find_the_folder_complete(script: Path, tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "federate", {"seed": 1})
    held, told = threading.Event(), tmp_path / "federate.told"

    def make() -> None:
        with lock.held(folder.lock, folder.path, Session()):
            folder.open()
            held.set()
            while not told.exists():
                time.sleep(0.05)
            folder.close(answer=42)

    thread = threading.Thread(target=make)
    thread.start()
    held.wait()
    done = ranks(2, script, folder.path, "wait")
    thread.join()
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["complete"] * 2, done.stdout + done.stderr[-3000:]
    assert sorted(path.name for path in folder.path.iterdir()) == ["done.json", "inputs.json"]
