"""Who trains in a round, in which order: pure functions of (seed, round)."""

from __future__ import annotations

from collections.abc import Sequence

from fedscale.rng import numpy_generator


def sample_cohort(seed: int, round_number: int, clients: int, per_round: int) -> list[int]:
    """`per_round` different clients of `clients`, uniformly, in ascending order."""
    drawn = numpy_generator(seed, "cohort", round_number).choice(clients, size=per_round, replace=False)
    return sorted(int(client) for client in drawn)


def by_steps(cohort: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The cohort with the largest clients first (ties by number): the order in which work is handed out."""
    return sorted(cohort, key=lambda client: (-sizes[client], client))
