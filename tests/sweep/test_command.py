"""`fedscale sweep`, whole, on a few small shapes: two processes, stopped, resumed, reported."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedscale import api, files
from fedscale.session import Session
from fedscale.sweep import open_sweep, runs
from fedscale.sweep.status import listed

pytestmark = pytest.mark.slow

SWEEP = """
name: small
base: [configs/demo.yaml]
methods:
  fedavg: configs/methods/fedavg.yaml
  server_only: {federate: {rounds: 0}, pretrain: {enabled: false}, align: {enabled: false}}
seeds: [1, 2]
tune: {grid: {federate.lr: [0.01, 0.1]}, rounds: 2}
heartbeat: 0.2
"""
WORDS = [
    "threads=1",
    "model.name=linear",
    "federate.rounds=40",
    "federate.backend=loop",
    "data.shapes.train_per_class=40",
    "data.shapes.test_per_class=10",
    "data.open_pool.reserve=10",
    "data.open_pool.validation=5",
]


def test_two_processes_are_stopped_and_the_same_command_goes_on(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP)
    words = [str(path), *WORDS]
    command = [sys.executable, "-m", "fedscale", "sweep", *words, "--jobs", "2"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "small"
    while running.poll() is None and not list(folder.glob("fedavg-s*/federate/round_*/COMPLETE")):
        time.sleep(0.02)  # until a final run has its first round
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 75, err
    assert "the same command resumes it" in err
    assert list((folder / "locks").glob("*.lease")) == []
    monkeypatch.chdir(tmp_path)
    session = Session()
    rows = api.sweep(*words, "jobs=1", session=session)
    assert any("resuming after round" in line for line in session.reporter.lines)
    assert {(row["variant"], row["seed"]) for row in rows} == {
        (m, s) for m in ("fedavg", "server_only") for s in (1, 2)
    }
    told = files.read_json(folder / "tuning.json")["methods"]
    scores = [row["score"] for row in told["fedavg"]["candidates"]]
    assert told["fedavg"]["chosen"] == {"federate.lr": [0.01, 0.1][scores.index(max(scores))]}
    assert len(told["server_only"]["candidates"]) == 1, "the learning rate changes nothing without rounds"
    opened = open_sweep(words)
    assert [row["state"] for row in listed(opened, runs(opened))] == ["done"] * 6
    assert (folder / "report" / "report.html").exists()
