"""The whole command: alone, by two ranks, with a broken sum, with a check that breaks off."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedscale.cli import app
from fedscale.distributed.launch import Place
from fedscale.distributed.mesh import Mesh, RankLost
from fedscale.doctor import examine
from fedscale.doctor import ranks as together
from fedscale.doctor.examine import carried_out
from fedscale.doctor.finding import Finding, Gravity, exit_code
from tests.doctor.conftest import Patients
from tests.ranks import ranks

SCRIPT = """
import torch
from fedscale.cli import main

torch.set_num_threads(1)
main()
"""


def test_one_process_says_that_it_has_nobody_to_sum_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(done.stdout)
    checks = {one["check"]: one for one in told["checks"]}
    assert done.exit_code == told["exit_code"] == 0, told
    assert checks["64 MB all-reduce"]["gravity"] == "unchecked" and "torchrun" in checks["64 MB all-reduce"]["remedy"]
    assert {"ranks", "device", "threads", "shared memory", "run folder", "libraries", "clock", "Slurm"} <= set(checks)
    assert all(one["remedy"] for one in told["checks"] if one["gravity"] in ("note", "mistake", "broken"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_ranks_sum_64_mb_and_one_of_them_reports(tmp_path: Path) -> None:
    script = tmp_path / "doctor.py"
    script.write_text(SCRIPT)
    done = ranks(2, script, "doctor", "--json", seconds=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # of rank 0 alone
    checks = {one["check"]: one for one in told["checks"]}
    assert told["ranks"] == 2 and checks["backend"]["facts"] == {"backend": "gloo", "hosts": 1, "ranks": 2}
    assert checks["64 MB all-reduce"]["gravity"] == "fine" and checks["64 MB all-reduce"]["facts"]["seconds"] > 0
    assert len(checks) == len(told["checks"]), "one finding a check"


def test_the_launcher_is_named(patient: Patients) -> None:
    two = replace(patient(), place=Place(0, 2, 0, 2, "head"))
    assert together.ranks(two, {"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}).found == "2, by torchrun; they meet at head"
    assert together.ranks(two, {"SLURM_STEP_ID": "0"}).facts["launcher"] == "srun"
    assert together.ranks(patient(), {}).found == "1, no launcher"
    assert together.ranks(patient(), {"ACCELERATE_MIXED_PRECISION": "no"}).found == "1, by accelerate"


def test_a_wrong_sum_is_broken(patient: Patients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "NUMBERS", 8)
    monkeypatch.setattr(Mesh, "sum_over_clients", lambda mesh, tensor: tensor.add_(2.0))
    assert together._reduction(patient(), Mesh(rank=0, world=2)).gravity == Gravity.FINE, "1 + 2 is right"
    monkeypatch.setattr(Mesh, "sum_over_clients", lambda mesh, tensor: tensor.add_(torch.arange(8) == 3))
    assert together._reduction(patient(), Mesh(rank=0, world=2)).gravity == Gravity.BROKEN


def test_a_rank_that_does_not_come_is_broken_and_named(patient: Patients, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> None:
        raise RankLost("doctor: rank 1 did not come to the start within 300 s; see that rank's own output")

    monkeypatch.setattr(examine, "open_mesh", nobody)
    met = examine._met(replace(patient(), place=Place(0, 2)), [Finding("ranks", Gravity.FINE, "2")], print)
    assert isinstance(met.lost, RankLost) and met.is_main and exit_code(met.findings) == 1
    assert "rank 1 did not come" in met.findings[1].found and "own output" in met.findings[1].remedy


def test_a_check_that_breaks_off_says_so_and_the_others_go_on(patient: Patients) -> None:
    def ill(_: object) -> None:
        raise ZeroDivisionError("by zero")

    (found,) = carried_out("disk", ill, patient())
    assert found.gravity == Gravity.UNCHECKED and found.found == "could not be checked (ZeroDivisionError: by zero)"


def test_the_exit_code_goes_by_gravity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = str(Path(__file__).parents[2] / "configs/demo.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    mistaken = CliRunner().invoke(app, ["doctor", demo, "federate.roundz=3"])
    assert mistaken.exit_code == 2 and "did you mean federate.rounds?" in mistaken.output
    assert CliRunner().invoke(app, ["doctor", demo, "data.format=folder", "data.source=nowhere"]).exit_code == 2
    assert CliRunner().invoke(app, ["doctor", demo, "out=taken"]).exit_code == 1
