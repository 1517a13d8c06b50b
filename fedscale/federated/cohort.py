"""Who trains in a round, in which groups, and where: no result depends on the world's size.

The cohort and its groups are functions of (seed, round). Only `placement` knows ranks, and it moves whole groups.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from fedscale.rng import numpy_generator


def sample_cohort(seed: int, round_number: int, clients: int, per_round: int) -> list[int]:
    """`per_round` different clients of `clients`, uniformly, in ascending order."""
    drawn = numpy_generator(seed, "cohort", round_number).choice(clients, size=per_round, replace=False)
    return sorted(int(client) for client in drawn)


def by_steps(cohort: Sequence[int], steps: Sequence[int]) -> list[int]:
    """The cohort with the clients of most steps first (ties by number); `steps[i]` are those of cohort[i]."""
    return [client for _, client in sorted(zip(steps, cohort, strict=True), key=lambda pair: (-pair[0], pair[1]))]


def groups_of(ordered: Sequence[int], lanes: int) -> list[list[int]]:
    """The ordered cohort cut into groups of `lanes` clients, the last one smaller where it does not divide."""
    return [list(ordered[start : start + lanes]) for start in range(0, len(ordered), lanes)]


def even_groups_of(ordered: Sequence[int], steps: Sequence[int], lanes: int) -> list[list[int]]:
    """Groups of at most `lanes` clients, of which none has more steps than the largest client alone.

    `steps[i]`, descending, are those of ordered[i]. A rank with one group is then never busy for longer than a round
    must take at least, whatever the number of lanes.
    """
    groups: list[list[int]] = []
    held = 0
    for client, own in zip(ordered, steps, strict=True):
        if not groups or len(groups[-1]) == lanes or held + own > steps[0]:
            groups.append([])
            held = 0
        groups[-1].append(client)
        held += own
    return groups


def placement(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Group numbers for each rank: largest first, each to the rank with least to do (ties by number)."""
    loads = [(0.0, rank) for rank in range(ranks)]
    placed: list[list[int]] = [[] for _ in range(ranks)]
    for group in sorted(range(len(costs)), key=lambda g: (-costs[g], g)):
        load, rank = heapq.heappop(loads)
        placed[rank].append(group)
        heapq.heappush(loads, (load + costs[group], rank))
    return placed


class CostModel:
    """A group's seconds as a + b·steps, fitted to the groups of the latest rounds by least squares.

    Until two different numbers of steps were seen the cost is the steps themselves, which orders groups as well.
    """

    def __init__(self, kept: int = 512) -> None:
        self._kept = kept
        self._steps, self._seconds = np.empty(0), np.empty(0)
        self.fixed, self.per_step = 0.0, 1.0

    def observe(self, steps: Sequence[float], seconds: Sequence[float]) -> None:
        """Fit again with the seconds that groups of so many steps took."""
        self._steps = np.append(self._steps, steps)[-self._kept :]
        self._seconds = np.append(self._seconds, seconds)[-self._kept :]
        spread = self._steps.std() if len(self._steps) else 0.0
        if spread > 0:
            slope = float(np.cov(self._steps, self._seconds, bias=True)[0, 1] / spread**2)
            if slope > 0:
                self.per_step = slope
                self.fixed = max(0.0, float(self._seconds.mean() - slope * self._steps.mean()))
        elif len(self._steps):
            self.fixed, self.per_step = 0.0, float(self._seconds.mean() / self._steps.mean())

    def cost(self, steps: float) -> float:
        """Predicted seconds of a group of so many steps (of all its lanes together)."""
        return self.fixed + self.per_step * steps
