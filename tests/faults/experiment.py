"""One small experiment, its stages carried out undisturbed by two ranks each, and copies of it at any stage's start."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.faults.command import carried_out

TIMEOUT = 10  # seconds that ranks wait for one another
STAGES = ("caption", "pretrain", "federate", "align")
WEIGHTS = {
    "pretrain": "export/model.safetensors", "federate": "model.safetensors", "align": "model.safetensors",
}  # fmt: skip
RECIPE = """
format: shapes
classes: 10
imbalance_factor: 2
samples_per_shard: 20
shapes: {train_per_class: 20, test_per_class: 5}
open_pool: {reserve: 10, validation: 2}
"""
WORDS = [
    "configs/demo.yaml", "variant=full", "seeds=[1]", "threads=1", "data.recipe=recipe.yaml", "model.norm=group",
    "data.partition.clients=4", "caption.engine=template", "caption.kinds=[description]", "pretrain.epochs=2",
    "pretrain.batch_size=8", "pretrain.streams=2", "pretrain.save_every=4", "pretrain.probe.enabled=false",
    "federate.rounds=10", "federate.clients_per_round=4", "federate.local_epochs=1", "federate.aggregate.exact=true",
    "eval.every=5", "align.epochs=30", "align.images_per_class=2",
    *(f"{stage}.timeout={TIMEOUT}" for stage in ("pretrain", "federate", "align")),
]  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """A folder that the commands are started in, and words that they have beside those that all have."""

    folder: Path
    more: tuple[str, ...] = ()

    def words(self, stage: str) -> list[str]:
        return [stage, *WORDS, *self.more]

    def stage(self, stage: str) -> Path:
        return self.folder / "runs" / "demo" / "full-s1" / stage

    def before(self, stage: str, place: Path) -> "Experiment":
        """A copy in which the stages before this one are complete."""
        later = STAGES[STAGES.index(stage) :]
        unwanted = shutil.ignore_patterns("*.log", "alignment-*", *later, *(f"{name}-*" for name in later))
        shutil.copytree(self.folder, place, symlinks=True, ignore=unwanted)
        return Experiment(place, self.more)

    def rows(self, stage: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.stage(stage) / "metrics.jsonl").read_text().splitlines()]

    def under_way(self, stage: str) -> bool:
        """Whether something was saved already that the stage would go on from; align: whether it trains."""
        marker = {"pretrain": "step_*/COMPLETE", "federate": "round_*/COMPLETE", "align": "metrics.jsonl"}[stage]
        return any(self.stage(stage).glob(marker))

    def assert_as(self, other: "Experiment", stage: str) -> None:
        """The same result, bit for bit in federation (exact mode), else but for rounding."""
        weights, expected = (load_file(one.stage(stage) / WEIGHTS[stage]) for one in (self, other))
        tolerance = 0 if stage == "federate" else 1e-4
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=tolerance, msg=name)
        found, wanted = (
            [(row.get("step"), row.get("round"), row.get("epoch")) for row in one.rows(stage)] for one in (self, other)
        )
        assert found == wanted, "every row once"


def undisturbed(folder: Path, *more: str, stages: tuple[str, ...] = STAGES) -> Experiment:
    """The stages carried out in the folder."""
    experiment = Experiment(folder, more)
    (folder / "recipe.yaml").write_text(RECIPE)
    for stage in stages:
        carried_out(experiment.words(stage), folder)
    return experiment
