"""Figures by class: accuracy from head to tail, class by class or, where there are many, as lines over their ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from fedscale.report import svg
from fedscale.report.palette import marker, marker_look, role, series
from fedscale.report.plots import Styles
from fedscale.report.records import GROUPS, Evaluation, Run

MOST_NAMED = 30  # more classes than this are lines over the ranks, without names
Accuracy = dict[str, np.ndarray]  # by variant, the classes from head to tail


def per_class(runs: Sequence[Run], styles: Styles, salt: str, narrow: bool = False) -> Markup:
    """Accuracy of each class (percent, mean over seeds) from head to tail, beside its number of training images."""
    reference = runs[0].final
    accuracy = {}
    for variant in styles:
        by_seed = [run.final.per_class for run in runs if run.variant == variant]
        accuracy[variant] = np.mean(by_seed, axis=0)[reference.head_to_tail]
    named = len(reference.class_names) <= MOST_NAMED
    draw = _as_rows if named else _as_lines
    return draw(reference, accuracy, styles, salt, narrow)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over a centred window that shrinks at both ends."""
    half = window // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def window(num_classes: int) -> int:
    """How many neighbouring classes the lines of many classes are averaged over; odd."""
    return 2 * max(1, num_classes // 30) + 1


def _as_rows(evaluation: Evaluation, accuracy: Accuracy, styles: Styles, salt: str, narrow: bool) -> Markup:
    """A row a class: its name and training images, then a point a variant."""
    size = len(evaluation.head_to_tail)
    made = svg.figure(480 if narrow else 860, 70 + 32 * size)
    left, right = made.subplots(1, 2, sharey=True, width_ratios=(1, 2.6 if narrow else 4.2))
    svg.style(left, grid="")
    svg.style(right, grid="x")
    counts = np.array([evaluation.train_counts[index] for index in evaluation.head_to_tail])
    left.barh(range(size), counts, height=0.56, color=role("bar"), zorder=2)
    for row, count in enumerate(counts):
        svg.label(left, f"{count:,}", (count, row), beside=5, color=role("muted"))
    left.set_xlim(0, counts.max() * 1.45)
    left.set_xticks([])
    left.set_title(
        "images" if narrow else "training images", fontsize=svg.SMALL, color=role("muted"), loc="left", pad=8
    )
    left.set_yticks(range(size), [evaluation.class_names[index] for index in evaluation.head_to_tail])
    left.tick_params(axis="y", labelcolor=role("ink"), labelsize=svg.FONT_SIZE)
    stacked = np.stack(list(accuracy.values()))
    right.hlines(range(size), stacked.min(axis=0), stacked.max(axis=0), color=role("bar"), linewidth=2, zorder=2)
    for variant, place in styles.items():
        right.plot(accuracy[variant], range(size), linestyle="", zorder=3, clip_on=False, **marker_look(place, 10.0))
    right.tick_params(axis="y", labelleft=False)
    right.set_title(f"{evaluation.split} accuracy", fontsize=svg.SMALL, color=role("muted"), loc="left", pad=8)
    right.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    right.set_xlim(0, 100)
    right.set_ylim(size - 0.5, -0.5)
    for edge_at in group_edges(evaluation):
        for axes in (left, right):
            axes.axhline(edge_at, color=role("muted"), linewidth=0.8, linestyle=(0, (3, 3)))
    _name_groups_at_the_right(right, evaluation)
    return svg.inline(made, "accuracy of each class, from head to tail", salt)


def _as_lines(evaluation: Evaluation, accuracy: Accuracy, styles: Styles, salt: str, narrow: bool) -> Markup:
    """Lines over the classes' ranks: a running mean, the classes themselves as faint points, the images below."""
    size = len(evaluation.head_to_tail)
    made = svg.figure(480 if narrow else 1000, 380 if narrow else 420)
    top, bottom = made.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    svg.style(top)
    svg.style(bottom)
    for variant, place in styles.items():
        ranks, values = np.arange(size), accuracy[variant]
        faint = series(place)
        top.plot(ranks, values, marker(place), markersize=4, color=faint, alpha=0.38, markeredgewidth=0)
        top.plot(ranks, running_mean(values, window(size)), color=series(place), linewidth=2.4, zorder=3)
    counts = np.array([evaluation.train_counts[index] for index in evaluation.head_to_tail])
    bottom.bar(range(size), counts, width=0.8 if size <= 200 else 1.0, color=role("bar"), zorder=2)
    top.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    top.set_ylim(0, 100)
    top.set_ylabel(f"{evaluation.split} accuracy")
    bottom.set_ylabel("images")
    bottom.set_xlabel("class, from head to tail")
    bottom.set_xlim(-0.8, size - 0.2)
    for edge in group_edges(evaluation):
        for axes in (top, bottom):
            axes.axvline(edge, color=role("muted"), linewidth=0.8, linestyle=(0, (3, 3)))
    for name, first, last in group_spans(evaluation):
        top.text((first + last) / 2, 101.5, name, ha="center", va="bottom", fontsize=svg.FONT_SIZE, color=role("muted"))
    return svg.inline(made, "accuracy by class rank, from head to tail", salt)


def _name_groups_at_the_right(axes: Axes, evaluation: Evaluation) -> None:
    for name, first, last in group_spans(evaluation):
        at = (1.0, (first + last) / 2)
        svg.label(axes, name, at, beside=14, color=role("muted"), xycoords=("axes fraction", "data"))


def group_spans(evaluation: Evaluation) -> list[tuple[str, int, int]]:
    """(group, first rank, last rank) of the groups that have classes."""
    members = [evaluation.group_of(index) for index in evaluation.head_to_tail]
    last = {name: rank for rank, name in enumerate(members)}
    return [(name, members.index(name), last[name]) for name in GROUPS if name in members]


def group_edges(evaluation: Evaluation) -> list[float]:
    """Where one group ends and the next begins, in ranks."""
    return [first - 0.5 for _, first, _ in group_spans(evaluation) if first > 0]
