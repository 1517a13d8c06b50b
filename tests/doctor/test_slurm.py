"""Slurm is asked, not only looked for."""

from pathlib import Path

import pytest

from fedscale.doctor import slurm
from fedscale.doctor.finding import Gravity
from tests.doctor.conftest import Patients


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_without_slurm_the_scripts_can_still_be_written(
    patient: Patients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, monkeypatch)
    found = slurm.slurm(patient())
    assert found.gravity == Gravity.NOTE and "--print" in found.remedy


@pytest.mark.parametrize(
    ("answer", "gravity"),
    [("echo 'Slurmctld(primary) at head is UP'", Gravity.FINE), ("echo 'is DOWN'; exit 1", Gravity.NOTE)],
)
def test_a_controller_that_answers_is_told_from_one_that_does_not(
    patient: Patients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, gravity: Gravity
) -> None:
    commands(tmp_path, monkeypatch, sbatch="exit 0", srun="exit 0", scontrol=answer)
    assert slurm.slurm(patient()).gravity == gravity
