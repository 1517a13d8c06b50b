"""torchrun --max-restarts: a killed rank, and all ranks of both hosts go on from the last checkpoint.

Each host has an agent of its own, started by hand. Federation is done so under Slurm (tests/cluster/test_slurm.py).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.experiment import Experiment
from tests.launching import REPOSITORY, free_port

pytestmark = pytest.mark.slow

# How two agents find one another: through a meeting place, or by numbers and the first one's address.
MEETINGS = {
    "c10d": ["--rdzv-backend=c10d", "--rdzv-id=job", "--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-conf=is_host={first}"],
    "static": ["--node-rank={node}", "--master-addr=127.0.0.1", "--master-port={port}"],
}


def agent(experiment: Experiment, stage: str, node: int, meeting: list[str]) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2"]
    with open(experiment.folder / f"agent{node}.log", "w") as log:
        return subprocess.Popen(
            [*torchrun, *meeting, "-m", "fedscale", *experiment.words(stage)], cwd=experiment.folder, text=True,
            stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


@pytest.mark.parametrize(("stage", "meeting"), [("pretrain", "c10d"), ("align", "static")])
def test_all_ranks_of_two_agents_are_started_again_and_end_as_if_undisturbed(stage, meeting, alone, tmp_path):
    patient = (f"{stage}.timeout=60",)  # four processes import their libraries at once
    experiment, port = Experiment(alone.before(stage, tmp_path / "here").folder, patient), free_port()
    begun = []
    try:
        for node in (0, 1):
            words = [word.format(port=port, node=node, first=node == 0) for word in MEETINGS[meeting]]
            begun.append(agent(experiment, stage, node, words))
        wait_until(lambda: experiment.under_way(stage), experiment)
        os.kill(rank_of(begun[1]), signal.SIGKILL)
        codes = [one.wait(300) for one in begun]
        assert codes == [0, 0], said(experiment)
    finally:
        for one in begun:
            one.terminate()  # with its rank
        for one in begun:
            one.wait(60)
    assert f"{stage}: resuming after " in said(experiment) or stage == "align"
    experiment.assert_as(alone, stage)


def rank_of(agent: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()[-1])


def said(experiment: Experiment) -> str:
    return "".join(path.read_text() for path in sorted(experiment.folder.glob("agent*.log")))


def wait_until(condition, experiment: Experiment) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end, said(experiment)
        time.sleep(0.01)
