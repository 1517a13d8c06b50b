"""Confusion matrices, row-normalised, classes from head to tail: one alone, or the variants side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fedscale.report import svg
from fedscale.report.classes import MOST_NAMED, group_edges, group_spans
from fedscale.report.palette import role
from fedscale.report.records import Evaluation

MOST_NUMBERED = 12  # matrices up to this size carry their numbers
MISTAKES = 5  # listed below the matrices
HEAT = (0x2F, 0x74, 0xD0)  # on transparent ground: reads on a light card and on a dark one
PER_ROW, WIDTH = 3, 860  # of several matrices


class Mistake(NamedTuple):
    """Images of one class that were taken for another: percent of the class before and after alignment."""

    actual: str
    predicted: str
    before: float
    after: float


class Panel(NamedTuple):
    """One of several matrices: its heading, and counts [true, predicted] in the order of the labels."""

    title: str
    counts: np.ndarray


def confusion(evaluation: Evaluation, counts: np.ndarray) -> Figure:
    """The matrix [true, predicted] of counts, each row as shares of its images, classes from head to tail."""
    made = svg.figure(480, 480)
    axes = svg.style(made.add_subplot(), grid="")
    _draw(axes, evaluation, counts)
    _name_columns(axes, evaluation)
    _name_rows(axes, evaluation)
    return made


def side_by_side(evaluation: Evaluation, panels: Sequence[Panel]) -> Figure:
    """One matrix a panel, on one colour scale; `evaluation` names the classes of all."""
    per_row = 2 if len(panels) == 4 else min(PER_ROW, len(panels))
    num_rows = -(-len(panels) // per_row)
    named = len(evaluation.class_names) <= MOST_NAMED
    numbered = len(evaluation.class_names) <= MOST_NUMBERED
    side = (WIDTH - (80 if numbered else 160)) / per_row if per_row > 1 else 400
    width = WIDTH if per_row > 1 else 480
    made = svg.figure(width, (70 if named else 45) + (side + 25) * num_rows)
    grid = made.subplots(num_rows, per_row, squeeze=False)
    for number, axes in enumerate(grid.flat):
        svg.style(axes, grid="")
        if number >= len(panels):
            axes.set_visible(False)
            continue
        _draw(axes, evaluation, panels[number].counts, small=per_row > 2)
        axes.set_title(panels[number].title, fontsize=svg.FONT_SIZE, color=role("ink"), pad=8)
        (_name_rows if number % per_row == 0 else _unnamed)(axes, evaluation)
        below_is_empty = number + per_row >= len(panels)
        if below_is_empty:
            _name_columns(axes, evaluation)
        else:
            axes.set_xticks([])
    if not numbered:
        _scale(made, grid, evaluation)
    return made


def top_confusions(evaluation: Evaluation, before: np.ndarray, after: np.ndarray) -> list[Mistake]:
    """The pairs of classes that lost the largest shares of their images before, the largest first."""
    shares = [100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) for counts in (before, after)]
    off = shares[0] - np.diag(np.diag(shares[0]))
    found = []
    for flat in np.argsort(-off, axis=None, kind="stable")[:MISTAKES]:
        row, column = divmod(int(flat), len(off))
        names = evaluation.class_names
        found.append(Mistake(names[row], names[column], *(float(share[row, column]) for share in shares)))
    return found


def _heat(share: float | np.ndarray, evaluation: Evaluation) -> np.ndarray:
    """RGBA [..., 4] of shares. A power below 1 lifts the small ones, which are what one looks for."""
    share = np.asarray(share)
    colours = np.empty((*share.shape, 4))
    colours[..., :3] = np.array(HEAT) / 255
    colours[..., 3] = share ** (
        0.75 if len(evaluation.class_names) <= MOST_NAMED else 0.45
    )  # many make them very small
    return colours


def _draw(axes: Axes, evaluation: Evaluation, counts: np.ndarray, small: bool = False) -> None:
    """The shares as colours, and as numbers of the classes, or of the groups where there are many classes."""
    order = evaluation.head_to_tail
    matrix = counts[np.ix_(order, order)].astype(float)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
    axes.imshow(_heat(shares, evaluation), interpolation="none", aspect="equal")
    for edge in group_edges(evaluation):
        axes.axhline(edge, color=role("muted"), linewidth=0.8, linestyle=(0, (3, 3)))
        axes.axvline(edge, color=role("muted"), linewidth=0.8, linestyle=(0, (3, 3)))
    for spine in axes.spines.values():
        spine.set(visible=True, color=role("grid"))
    if len(order) > MOST_NAMED:
        _show_group_shares(axes, evaluation, shares)
    elif len(order) <= MOST_NUMBERED:
        for row, column in zip(*np.nonzero(shares >= (0.05 if small else 0.02)), strict=True):
            colour = role("on-heat") if shares[row, column] > 0.5 else role("ink")
            label = f"{100 * shares[row, column]:.0f}"
            size = svg.SMALL - 2 if small else svg.SMALL
            axes.text(column, row, label, ha="center", va="center", fontsize=size, color=colour)


def _scale(made: Figure, grid: np.ndarray, evaluation: Evaluation) -> None:
    """The colour scale beside the matrices. The bar that matplotlib draws would lose the transparency."""
    bar = made.colorbar(ScalarMappable(), ax=grid, shrink=0.5, aspect=30, format=PercentFormatter(1.0, decimals=0))
    assert bar.solids is not None
    bar.solids.remove()
    colours = _heat(np.linspace(0, 1, 256), evaluation)[:, None]
    bar.ax.imshow(colours, extent=(0, 1, 0, 1), origin="lower", aspect="auto", interpolation="none")
    bar.ax.set_facecolor("none")
    bar.outline.set_edgecolor(role("grid"))
    bar.ax.tick_params(length=0, labelsize=svg.SMALL, labelcolor=role("muted"))


def _name_columns(axes: Axes, evaluation: Evaluation) -> None:
    """The classes below the columns, or their groups where there are many."""
    order = evaluation.head_to_tail
    if len(order) <= MOST_NAMED:
        names = [evaluation.class_names[index] for index in order]
        axes.set_xticks(range(len(order)), names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(*_middles(evaluation))
        axes.set_xlabel("taken for, head to tail")
    axes.tick_params(axis="x", labelcolor=role("ink"), labelsize=svg.SMALL)


def _name_rows(axes: Axes, evaluation: Evaluation) -> None:
    """The classes beside the rows, or their groups where there are many."""
    order = evaluation.head_to_tail
    if len(order) <= MOST_NAMED:
        axes.set_yticks(range(len(order)), [evaluation.class_names[index] for index in order])
    else:
        axes.set_yticks(*_middles(evaluation), rotation=90, va="center")
        axes.set_ylabel("true class, head to tail")
    axes.tick_params(axis="y", labelcolor=role("ink"), labelsize=svg.SMALL)


def _unnamed(axes: Axes, evaluation: Evaluation) -> None:
    axes.set_yticks([])


def _middles(evaluation: Evaluation) -> tuple[list[float], list[str]]:
    spans = group_spans(evaluation)
    return [(first + last) / 2 for _, first, last in spans], [name for name, _, _ in spans]


def _show_group_shares(axes: Axes, evaluation: Evaluation, shares: np.ndarray) -> None:
    """For more classes than can be named: in each block of groups its share of the rows' images."""
    spans = group_spans(evaluation)
    box = {"boxstyle": "round,pad=0.35", "facecolor": role("card"), "edgecolor": role("grid")}
    for _, top, bottom in spans:
        for _, left, right in spans:
            share = shares[top : bottom + 1, left : right + 1].sum(axis=1).mean()
            at = (left + (right - left) * 0.72, top + (bottom - top) * 0.28)
            axes.text(
                *at, f"{100 * share:.0f}%", ha="center", va="center", fontsize=svg.SMALL, color=role("ink"), bbox=box
            )
