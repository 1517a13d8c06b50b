"""Variants over seeds: means, and changes against the baseline variant, paired seed by seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedscale.report.records import METRICS, Run

BASELINE = "fedavg"
FULL = "full"
MINUS = "\N{MINUS SIGN}"


def summary_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The rows of summary.json: {variant, method, seed, all, many, medium, few, seconds}, accuracies in percent."""
    return [
        {
            "variant": run.variant,
            "method": run.method,
            "seed": run.seed,
            **{metric: _rounded(run.final.scores[metric], 3) for metric in METRICS},
            "seconds": _rounded(sum(run.seconds.values()), 1),
        }
        for run in runs
    ]


@dataclass(frozen=True)
class Comparison:
    """Summary rows as a table of variants × seeds. The baseline is `fedavg`, or else the first variant."""

    rows: tuple[dict[str, Any], ...]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(row["variant"] for row in self.rows))

    @property
    def seeds(self) -> list[int]:
        return sorted({row["seed"] for row in self.rows})

    def seeds_of(self, variant: str) -> list[int]:
        return sorted(row["seed"] for row in self.rows if row["variant"] == variant)

    @property
    def baseline(self) -> str:
        return BASELINE if BASELINE in self.variants else self.variants[0]

    @property
    def headline(self) -> str:
        """The variant to speak of first: `full`, else the best on All that is not the baseline."""
        others = [variant for variant in self.variants if variant != self.baseline]
        if not others:
            return self.baseline
        return FULL if FULL in others else max(others, key=lambda variant: self.mean(variant, "all") or 0.0)

    def value(self, variant: str, seed: int, metric: str) -> float | None:
        return next((row[metric] for row in self.rows if (row["variant"], row["seed"]) == (variant, seed)), None)

    def values(self, variant: str, metric: str) -> list[float]:
        found = (self.value(variant, seed, metric) for seed in self.seeds_of(variant))
        return [value for value in found if value is not None]

    def mean(self, variant: str, metric: str) -> float | None:
        return mean(self.values(variant, metric))

    def change(self, variant: str, seed: int, metric: str) -> float | None:
        """Against the baseline with the same seed, in points; None for the baseline and where a side is missing."""
        if variant == self.baseline:
            return None
        value, base = self.value(variant, seed, metric), self.value(self.baseline, seed, metric)
        return None if value is None or base is None else value - base

    def mean_change(self, variant: str, metric: str) -> float | None:
        changes = (self.change(variant, seed, metric) for seed in self.seeds_of(variant))
        return mean([change for change in changes if change is not None])


def verdict(rows: Iterable[dict[str, Any]]) -> str:
    """One line: `full over fedavg: All +8.1 / +7.4, Few +21.0 / +18.2 (seeds 7 / 8)`; for one variant, its scores."""
    comparison = Comparison(tuple(rows))
    variant, base = comparison.headline, comparison.baseline
    paired = [seed for seed in comparison.seeds_of(variant) if seed in comparison.seeds_of(base)]
    if variant == base or not paired:
        seeds = comparison.seeds_of(variant)
        all_, few = (
            " / ".join(percent(comparison.value(variant, seed, metric)) for seed in seeds) for metric in ("all", "few")
        )
        return f"{variant}: All {all_}, Few {few} ({_named(seeds)})"
    all_, few = (
        " / ".join(signed(comparison.change(variant, seed, metric)) for seed in paired) for metric in ("all", "few")
    )
    return f"{variant} over {base}: All {all_}, Few {few} ({_named(paired)})"


def closing_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What the terminal says below the table."""
    return [verdict(rows)]


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def signed(value: float | None) -> str:
    """A change in points with its sign; one that rounds to nothing has none."""
    if value is None:
        return "–"
    text = f"{abs(value):.1f}"
    if float(text) == 0.0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def duration(seconds: float | None) -> str:
    """`8.4 s`, `2 min 05 s`, `3 h 12 min`."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _named(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {' / '.join(map(str, seeds))}"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
