"""A patient: this process alone, with a config whose folders are the test's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedscale.config import load_config
from fedscale.distributed.launch import Place
from fedscale.doctor.patient import Patient

ROOT = Path(__file__).parents[2]

Patients = Callable[..., Patient]


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patients:
    """Makes one of the demo's config and `key=value` words; runs and shards would go to the test's folder."""
    monkeypatch.chdir(tmp_path)

    def made(*words: str) -> Patient:
        return Patient(load_config([str(ROOT / "configs/demo.yaml"), *words]), True, Place())

    return made
