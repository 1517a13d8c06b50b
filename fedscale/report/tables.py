"""The closing table on the terminal: a row a variant, the mean over its seeds first, then each seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from fedscale.report.compare import Comparison, duration, percent, signed
from fedscale.report.records import METRICS

CHANGES = ("all", "few")


def table(rows: list[dict[str, Any]], against: str = "") -> Table:
    """The rows of summary.json as a table of 80 columns at most, with the changes against the baseline."""
    comparison = Comparison(tuple(rows), against)
    compared = len(comparison.variants) > 1
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    result.add_column("variant")
    for metric in METRICS:
        result.add_column(metric.capitalize(), justify="right")
    for metric in CHANGES if compared else ():
        result.add_column(f"Δ {metric.capitalize()}", justify="right")
    result.add_column("time", justify="right")
    for variant in comparison.variants:
        result.add_row(*_cells(comparison, variant, compared))
    return result


def _cells(comparison: Comparison, variant: str, compared: bool) -> list[Text]:
    seeds = comparison.seeds_of(variant)

    def cell(mean: str, of_seed: Callable[[int], str], style: str = "") -> Text:
        """The mean, and below it each seed's value; one seed alone is its own mean."""
        text = Text(mean, style=f"bold {style}".strip())
        if len(seeds) > 1:
            for seed in seeds:
                text.append(f"\n{of_seed(seed)}", style=f"not bold dim {style}".strip())
        return text

    def plain(metric: str, show: Callable[[float | None], str]) -> Text:
        return cell(show(comparison.mean(variant, metric)), lambda seed: show(comparison.value(variant, seed, metric)))

    def change(metric: str) -> Text:
        if variant == comparison.baseline:
            return Text("")
        value = comparison.mean_change(variant, metric)
        style = "" if value is None or abs(value) < 0.05 else ("green" if value > 0 else "red")
        return cell(signed(value), lambda seed: signed(comparison.change(variant, seed, metric)), style)

    name = cell(variant, lambda seed: f"  seed {seed}")
    if len(seeds) == 1:
        name.append(f"  seed {seeds[0]}", style="not bold dim")
    changes = [change(metric) for metric in CHANGES] if compared else []
    return [name, *(plain(metric, percent) for metric in METRICS), *changes, plain("seconds", duration)]
