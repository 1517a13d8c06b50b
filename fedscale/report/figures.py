"""What the page's figures are made from, and the two that a paper shows, as files of their own.

`confusion` is every variant's confusion matrix side by side, `fractions` the accuracy over the share of images with
labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedscale.progress import Task
from fedscale.report import plots, svg
from fedscale.report.compare import Comparison, percent
from fedscale.report.confusions import Panel, side_by_side
from fedscale.report.palette import for_print
from fedscale.report.records import Collection, Run
from fedscale.report.statistics import mean

SCRATCH, PRETRAINED = "from random weights", "pretrained on the captioned pool"


def write_figures(
    collection: Collection, rows: list[dict[str, Any]], folder: Path, task: Task, against: str = ""
) -> None:
    """Publish `confusion` and, where pretraining was probed, `fractions` in `folder`, each as SVG and PDF."""
    comparison = Comparison(tuple(rows), against)
    runs = by_variant(collection.runs)
    reference = runs[comparison.headline][0].final
    with for_print():
        svg.save(side_by_side(reference, panels(comparable(runs, comparison.headline))), folder / "confusion")
        task.advance()
        if probed := probed_runs(runs, comparison.headline):
            place = places(comparison)[probed[0].variant]
            made = plots.fractions(probed, place)
            plots.name_curves(made, place, SCRATCH, PRETRAINED)
            svg.save(made, folder / "fractions")
            task.advance()


def by_variant(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each variant, in their order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.variant, []).append(run)
    return found


def places(comparison: Comparison) -> dict[str, int]:
    """Each variant's place in the palette: the baseline takes the grey, unless there is nothing to compare it with."""
    ranked = sorted(comparison.variants, key=lambda variant: variant != comparison.baseline)
    first = 0 if len(ranked) > 1 else 1
    return {variant: first + ranked.index(variant) for variant in comparison.variants}


def comparable(runs: dict[str, list[Run]], headline: str) -> dict[str, list[Run]]:
    """The runs on the headline's classes, by variant."""
    names = runs[headline][0].final.class_names
    same = {variant: [run for run in own if run.final.class_names == names] for variant, own in runs.items()}
    return {variant: own for variant, own in same.items() if own}


def panels(runs: dict[str, list[Run]]) -> list[Panel]:
    """The final model's confusion of each variant, the counts of its seeds added up."""
    found = []
    for variant, own in runs.items():
        counts = np.sum([run.final.confusion for run in own], axis=0)
        accuracy = mean([score for run in own if (score := run.final.scores["all"]) is not None])
        found.append(Panel(f"{variant}, {percent(accuracy)}%", counts))
    return found


def probed_runs(runs: dict[str, list[Run]], headline: str) -> list[Run]:
    """The runs whose probe is shown: of the variant `pretrain`, else the headline's, else of the first that has one."""
    for variant in ("pretrain", headline, *runs):
        found = [run for run in runs.get(variant, []) if run.probe]
        if found:
            return found
    return []
