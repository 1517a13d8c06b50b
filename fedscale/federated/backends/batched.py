"""The `batched` and `graph` backends: a group's clients side by side, each operation one kernel for all of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch

from fedscale.federated.backends.base import OutOfMemory, RoundStart, Trained
from fedscale.federated.backends.memory import is_out_of_memory
from fedscale.federated.backends.trainer import LaneTrainer
from fedscale.federated.plan import GroupPlan


class BatchedBackend:
    """Trains `lanes` clients at once; where the memory does not suffice, half as many from then on."""

    def __init__(
        self, make_trainer: Callable[[int], LaneTrainer], lanes: int, name: str = "batched", exact: bool = False
    ) -> None:
        self.name, self.lanes = name, lanes
        self.working_lanes = lanes
        self._make, self._exact = make_trainer, exact
        self._trainer: LaneTrainer | None = None

    def train(self, start: RoundStart, plan: GroupPlan) -> Iterator[Trained]:
        first = 0
        while first < plan.lanes:
            part = plan.part(first, min(first + self.working_lanes, plan.lanes))
            try:
                self._trainer = self._trainer or self._make(self.working_lanes)
                trained = self._trainer.train(start, part)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve()
                continue  # the same clients again, from their start
            yield trained
            first += part.lanes

    def _halve(self) -> None:
        """Go on with half the lanes and new buffers. Raises OutOfMemory in exact mode, MemoryError at one lane."""
        lanes, self._trainer = self.working_lanes, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._exact:
            raise OutOfMemory
        if lanes == 1:
            raise MemoryError("out of memory with one client")
        self.working_lanes = lanes // 2
