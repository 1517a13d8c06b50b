"""A sweep whose stages only note that they ran and write a score, a function of the config."""

import dataclasses
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscale import files, stages
from fedscale.config import Config
from fedscale.errors import Diverged, Stopped
from fedscale.runs import RunFolder
from fedscale.session import Session
from fedscale.sweep import Sweep, open_sweep

SWEEP = """
base: [BASE]
methods:
  fedavg: {pretrain: {enabled: false}, align: {enabled: false}}
  fedprox: {federate: {method: fedprox}, pretrain: {enabled: false}, align: {enabled: false}}
  full: {}
axes: {data.imbalance_factor: [20, 5], data.partition.clients: [10]}
seeds: [1, 2]
tune:
  grid: {federate.lr: [0.1, 0.3], align.lr: [0.01, 0.02]}
  options: {fedprox: {federate.options.mu: [0.0, 0.1]}}
  rounds: 2
heartbeat: 0.02
"""


@dataclasses.dataclass
class Stages:
    """What ran, in order; `before` is called at the start of each stage, and may raise."""

    ran: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    before: Callable[[str, Config, Session], None] = lambda stage, config, session: None

    def count(self, stage: str, where: str = "") -> int:
        return sum(1 for s, variant, _ in self.ran if s == stage and variant.startswith(where))


def score_of(config: Config) -> float:
    """Highest at lr 0.3, and for fedprox at μ 0.1; diverged above lr 1, and at an α of 10."""
    if config.federate.lr > 1 or config.data.partition.alpha == 10:
        raise Diverged(f"federate: every client diverged; lower federate.lr={config.federate.lr}")
    return 50.0 - abs(config.federate.lr - 0.3) + config.federate.options.get("mu", 0.0)


@pytest.fixture
def stages_ran(monkeypatch: pytest.MonkeyPatch) -> Stages:
    noted, lock = Stages(), threading.Lock()

    def recorder(stage: str) -> Callable[..., dict[str, Any]]:
        def run(config: Config, run: RunFolder, session: Session) -> dict[str, Any]:
            noted.before(stage, config, session)
            if session.stop_requested:
                raise Stopped(stage)
            for name in stages.prerequisites(config, stage):
                assert (run.stage(name) / "done.json").exists(), f"{stage} before {name}"
            score = score_of(config)
            with lock:
                noted.ran.append((stage, config.variant, config.seed))
            if stage in ("federate", "align"):
                scores = {"all": score, "many": score, "medium": score, "few": None, "split": config.eval.split}
                files.write_json(run.stage(stage) / "evaluation.json", scores)
            return {}

        return run

    for stage in stages.MODULES:
        module = types.ModuleType(f"noted_{stage}")
        module.run = recorder(stage)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(stages.MODULES, stage, module.__name__)
    monkeypatch.setattr("fedscale.sweep.work.prepare_data", lambda config, session: None)
    return noted


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    base = tmp_path / "base.yaml"
    base.write_text("name: base\nthreads: 1\ndata: {partition: {clients: 20}}\n")
    path = tmp_path / "trial.yaml"
    path.write_text(SWEEP.replace("BASE", str(base)))
    return path


@pytest.fixture
def opened(sweep_file: Path, tmp_path: Path) -> Callable[..., Sweep]:
    return lambda *words: open_sweep([str(sweep_file), f"out={tmp_path / 'runs'}", *words])
