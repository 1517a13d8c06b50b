"""`fedscale run` with several jobs at once: one of its worker processes is killed in the middle of federation."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.command import carried_out
from tests.faults.experiment import RECIPE, WORDS
from tests.faults.whole import assert_whole
from tests.launching import REPOSITORY

pytestmark = pytest.mark.slow

RUN = [*WORDS, "variant=fedavg", "seeds=[1,2]", "jobs=2"]


def test_a_killed_worker_is_one_line_and_the_same_command_ends_as_if_undisturbed(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for seed in (1, 2):
        carried_out(["federate", *RUN, f"seeds=[{seed}]", "out=alone"], tmp_path, count=1)
    run = started(tmp_path)
    runs = [tmp_path / "runs" / "demo" / f"fedavg-s{seed}" / "federate" for seed in (1, 2)]
    end = time.monotonic() + 120
    while not any(marker for path in runs for marker in path.glob("round_*/COMPLETE")):
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.01)
    os.kill(workers(run)[0], signal.SIGKILL)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1, said
    assert said.splitlines()[-1].startswith("error: a worker process died") and "Traceback" not in said, said
    assert_whole(tmp_path / "runs", tmp_path)
    assert "resuming after round" in carried_out(["run", *RUN, "jobs=1"], tmp_path, count=1)
    for path in runs:
        expected = tmp_path / "alone" / path.relative_to(tmp_path / "runs") / "model.safetensors"
        assert (path / "model.safetensors").read_bytes() == expected.read_bytes()


def started(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedscale", "run", *RUN], cwd=folder, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def workers(run: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
