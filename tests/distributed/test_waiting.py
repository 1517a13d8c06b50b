"""Ranks wait for what the main one does alone, and a stop of any of them reaches it."""

import json
from pathlib import Path

import pytest

from fedscale.distributed.mesh import Mesh
from fedscale.distributed.waiting import by_main
from fedscale.session import Session
from tests.ranks import ranks

RANK = """
import json, sys, time
from pathlib import Path
import torch
from fedscale.distributed.mesh import open_mesh
from fedscale.errors import Stopped
from fedscale.distributed import waiting
from fedscale.session import Session

torch.set_num_threads(1)
waiting.BEAT = 0.2

def long(session):
    "Longer than a rank waits for another."
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert not session.stop_requested
    return 42

def until_stopped(session):
    while not session.stop_requested:
        pass
    raise Stopped("as asked")

with open_mesh(torch.device("cpu"), 1, 3, print, "test") as mesh:
    mesh.barrier("the start")
    session = Session()
    given = waiting.by_main(mesh, session, long)
    if not mesh.is_main:
        session.stop.set()
    try:
        waiting.by_main(mesh, session, until_stopped)
        stopped = False
    except Stopped:
        stopped = True
    Path(sys.argv[1], f"{mesh.rank}.json").write_text(json.dumps([given, stopped, session.stop.is_set()]))
"""


def test_alone_the_work_is_simply_done() -> None:
    session = Session()
    assert by_main(Mesh(), session, lambda given: given is session)


@pytest.mark.slow
def test_ranks_wait_beyond_their_timeout_and_all_stop_when_one_is_asked_to(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    done = ranks(2, script, tmp_path, seconds=120)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told == [[42, True, False], [None, True, True]]
