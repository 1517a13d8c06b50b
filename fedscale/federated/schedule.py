"""The work of one round, dealt out: who trains, in which groups, on which ranks, and what each client counts for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """A round's cohort and its groups; the same on every rank. Lists and `weights` follow the cohort's order."""

    number: int
    cohort: list[int]  # the clients, those of most samples first
    sizes: list[int]  # samples
    steps: list[int]
    weights: Tensor  # float64 [cohort], together 1
    groups: list[list[int]]  # that train side by side
    group_steps: list[int]  # of all the clients of each group together
    placed: list[list[int]]  # each rank's groups, by their numbers

    @property
    def equal(self) -> float:
        """What a client counts for where all count the same."""
        return 1 / len(self.cohort)

    def busy(self, seconds: Tensor) -> list[float]:
        """Each rank's seconds of training, of those of each group."""
        return [float(seconds[own].sum()) for own in self.placed]
