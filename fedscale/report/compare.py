"""Variants over seeds: means, and changes against the baseline variant, paired seed by seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedscale.errors import UserError
from fedscale.report.over_rounds import over_rounds
from fedscale.report.records import METRICS, Run
from fedscale.report.statistics import Difference, Spread, difference, mean, spread

BASELINE = "fedavg"
FULL = "full"
MINUS = "\N{MINUS SIGN}"


def summary_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The rows of summary.json, a run each, accuracies in percent; what an older run did not record is None.

    {variant, method, seed, aligned, split, all, many, medium, few, balanced_error, ece} of the final model;
    {client_mean, client_variance, client_worst_decile} over the clients; {last, best, mean10} over the rounds, each of
    all, many, medium, few, and {best_round, rounds_evaluated}; {bytes_down, bytes_up, flops} of a round's cohort;
    seconds of all stages.
    """
    return [
        {
            "variant": run.variant,
            "method": run.method,
            "seed": run.seed,
            "aligned": run.aligned is not None,
            "split": run.final.split,
            **{metric: _rounded(run.final.scores[metric], 3) for metric in METRICS},
            "balanced_error": _rounded(run.final.balanced_error, 3),
            "ece": _rounded(run.final.ece, 3),
            **_over_clients(run),
            **{way: _all_rounded(scores, 3) for way, scores in over_rounds(run.rounds).items()},
            **{name: getattr(run.cost, name, None) for name in ("bytes_down", "bytes_up", "flops")},
            "seconds": _rounded(sum(run.seconds.values()), 1),
        }
        for run in runs
    ]


def _over_clients(run: Run) -> dict[str, float | None]:
    names = ("mean", "variance", "worst_decile")
    return {f"client_{name}": _rounded(getattr(run.final.fairness, name, None), 3) for name in names}


def _all_rounded(scores: Any, digits: int) -> Any:
    """A dict's numbers rounded; a round's number, and None, as they are."""
    if not isinstance(scores, dict):
        return scores
    return {name: _rounded(value, digits) for name, value in scores.items()}


@dataclass(frozen=True)
class Comparison:
    """Summary rows as a table of variants × seeds. The baseline is `against`, else `fedavg`, else the first variant.

    Metrics are keys of the rows, or `last.all` for what lies deeper. Raises UserError for an `against` that is none.
    """

    rows: tuple[dict[str, Any], ...]
    against: str = ""

    def __post_init__(self) -> None:
        if self.against and self.against not in self.variants:
            raise UserError(f"--baseline {self.against}: expected one of {', '.join(self.variants)}")

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
        return self.against or (BASELINE if BASELINE in self.variants else self.variants[0])

    @property
    def headline(self) -> str:
        """The variant to speak of first: `full`, else the best on All that is not the baseline."""
        others = [variant for variant in self.variants if variant != self.baseline]
        if not others:
            return self.baseline
        return FULL if FULL in others else max(others, key=lambda variant: self.mean(variant, "all") or 0.0)

    def value(self, variant: str, seed: int, metric: str) -> float | None:
        found: Any = next((row for row in self.rows if (row["variant"], row["seed"]) == (variant, seed)), None)
        for key in metric.split("."):
            found = found.get(key) if found else None
        return found

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
        return mean(self._changes(variant, metric))

    def spread(self, variant: str, metric: str) -> Spread | None:
        """The mean over the variant's seeds and its deviation."""
        return spread(self.values(variant, metric))

    def difference(self, variant: str, metric: str) -> Difference | None:
        """Against the baseline over the seeds that both have, with the interval of the paired differences."""
        return difference(self._changes(variant, metric))

    def _changes(self, variant: str, metric: str) -> list[float]:
        changes = (self.change(variant, seed, metric) for seed in self.seeds_of(variant))
        return [change for change in changes if change is not None]


def verdict(rows: Iterable[dict[str, Any]], against: str = "") -> str:
    """One line: `full over fedavg: All +8.1 / +7.4, Few +21.0 / +18.2 (seeds 7 / 8)`; for one variant, its scores."""
    comparison = Comparison(tuple(rows), against)
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


def closing_lines(rows: Iterable[dict[str, Any]], against: str = "") -> list[str]:
    """What the terminal says below the table."""
    return [verdict(rows, against)]


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
