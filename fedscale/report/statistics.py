"""Numbers over seeds: mean, sample deviation, and the interval of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Spread:
    """A mean over `seeds` runs, with the sample standard deviation (n − 1) where there are two or more."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """The mean of differences at equal seeds, with its 95% interval where there are two seeds or more."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and deviation; None of no values."""
    middle = mean(values)
    return None if middle is None else Spread(middle, deviation(values), len(values))


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None below two values."""
    if len(values) < 2:
        return None
    middle = sum(values) / len(values)
    return (sum((value - middle) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def difference(differences: Sequence[float]) -> Difference | None:
    """The mean of paired differences and its interval, mean ± t · deviation / √n with n − 1 degrees of freedom."""
    found = spread(differences)
    if found is None:
        return None
    if found.deviation is None:
        return Difference(found.mean, None, None, found.seeds)
    from scipy.special import stdtrit  # only here: a second to import; Student's t at a probability

    half = float(stdtrit(found.seeds - 1, 0.5 + LEVEL / 2)) * found.deviation / found.seeds**0.5
    return Difference(found.mean, found.mean - half, found.mean + half, found.seeds)
