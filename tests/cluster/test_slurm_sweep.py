"""A sweep's array on a Slurm cluster: a task that is told to stop is queued again, and ends as if it had not been."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedscale import api
from tests.cluster.slurm import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SWEEP = """
base: [configs/demo.yaml]
methods: {fedavg: configs/methods/fedavg.yaml}
seeds: [1, 2]
slurm: {options: [--partition=main, "--time=10:00"]}
"""
WORDS = [
    "threads=1", "model.name=linear", "federate.rounds=400", "federate.backend=loop", "federate.local_epochs=1",
    "eval.every=100", "data.shapes.train_per_class=40", "data.shapes.test_per_class=10", "data.open_pool.reserve=10",
    "data.open_pool.validation=5",
]  # fmt: skip


def test_a_task_that_is_told_to_stop_is_queued_again_and_ends_with_the_same_bytes(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trial.yaml").write_text(SWEEP)
    asked = [sys.executable, "-m", "fedscale", "sweep", "trial.yaml", *WORDS, "--submit"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    told = re.fullmatch(r"submitted job (\d+): runs 0-1\n", done.stdout)
    assert told, done.stdout + done.stderr
    job, runs = told[1], tmp_path / "runs" / "trial"
    stopped = runs / "fedavg-s1" / "federate"
    slurm.until(lambda: list(stopped.glob("round_*/COMPLETE")), "rounds of run 0", job)
    slurm.run("scancel", "--signal=TERM", "--batch", f"{job}_0")
    slurm.until(lambda: all(task["JobState"] == "COMPLETED" for task in slurm.tasks(job)), "both runs", job)
    assert {task["ArrayTaskId"]: task["Restarts"] for task in slurm.tasks(job)} == {"0": "1", "1": "0"}
    log = (runs / "slurm" / "0.log").read_text()
    assert "stopped" in log and f"job {job}_0 ended with 75 and is started again" in log
    assert f"job {job}_0, start 2" in log and "federate: resuming after round" in log
    api.sweep("trial.yaml", *WORDS, "name=alone", "jobs=1")
    for run in ("fedavg-s1", "fedavg-s2"):
        left, right = (tmp_path / "runs" / name / run / "federate" for name in ("trial", "alone"))
        assert (left / "model.safetensors").read_bytes() == (right / "model.safetensors").read_bytes(), run
    rows = [json.loads(line)["round"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 401))
