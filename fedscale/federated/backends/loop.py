"""The `loop` backend: one client after another, each as a group of one. Every model can be trained so."""

from __future__ import annotations

from collections.abc import Iterator

from fedscale.federated.backends.base import RoundStart, Trained
from fedscale.federated.backends.trainer import LaneTrainer
from fedscale.federated.plan import GroupPlan


class LoopBackend:
    """Trains a group's clients one by one."""

    name = "loop"
    lanes = 1

    def __init__(self, trainer: LaneTrainer) -> None:
        self._trainer = trainer

    def train(self, start: RoundStart, plan: GroupPlan) -> Iterator[Trained]:
        for lane in range(plan.lanes):
            yield self._trainer.train(start, plan.part(lane, lane + 1))
