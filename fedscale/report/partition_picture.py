"""A partition as a picture: clients side by side, classes from head to tail, the darker the more images."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedscale import files
from fedscale.data.partition_facts import PartitionFacts
from fedscale.errors import UserError
from fedscale.report.palette import ROLES
from fedscale.report.svg import FONT_SIZE, SMALL, UNITS_PER_INCH

FORMATS = (".png", ".svg")
NUMBERED = (32, 24)  # clients and classes up to which each cell shows its number
NAMED = 60  # classes up to which each is named
MOST = 400  # cells along a side; above, neighbours are shown as one, by their mean
SIDES = (420.0, 1000.0)  # units of the shortest and of the longest side of the map
SHARPNESS = 2  # pixels of a PNG a unit
INK, MUTED, GRID, CARD, BAR = (ROLES[name][1] for name in ("ink", "muted", "grid", "card", "bar"))
HEAT = LinearSegmentedColormap.from_list("heat", ["#dbe7f8", ROLES["heat"][1], "#0a1f45"])


def check_format(path: Path) -> None:
    """Raises UserError for a file that is neither PNG nor SVG."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--plot {path}: expected a file that ends in {' or '.join(FORMATS)}")


def save_picture(facts: PartitionFacts, path: Path, title: str) -> None:
    """Write the picture as PNG or SVG, by the suffix (UserError for another); equal partitions give equal bytes."""
    check_format(path)
    made = draw(facts, title)
    form = path.suffix.lower()[1:]
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    # rc_context: these two settings have no place in the object-oriented API, and are put back at once.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "partition"}), files.published(path) as where:
        made.savefig(where, format=form, dpi=SHARPNESS * UNITS_PER_INCH, metadata=metadata)


def draw(facts: PartitionFacts, title: str) -> Figure:
    """The map with the clients' sizes above it and the classes' sizes beside it."""
    order = np.argsort(-facts.counts.sum(0), kind="stable")
    table = facts.counts[:, order].T  # [classes, clients]
    classes, clients = table.shape
    width, height = _side(clients, 34), _side(classes, 26)
    made = Figure(
        figsize=((width + 260) / UNITS_PER_INCH, (height + 230) / UNITS_PER_INCH),
        dpi=UNITS_PER_INCH,
        facecolor=CARD,
        layout="constrained",
    )
    made.suptitle(title, fontsize=FONT_SIZE + 2, color=INK)
    grid = made.add_gridspec(2, 2, width_ratios=(width, 100), height_ratios=(70, height))
    middle = _plain(made.add_subplot(grid[1, 0]))
    above = _plain(made.add_subplot(grid[0, 0], sharex=middle))
    beside = _plain(made.add_subplot(grid[1, 1], sharey=middle))
    means = _binned(_binned(table.astype(float), 0), 1)
    shown = np.ma.masked_equal(means, 0)
    lowest, highest = (float(shown.min()), float(shown.max())) if shown.count() else (1.0, 1.0)
    highest = max(highest, 2 * lowest)
    norm = LogNorm(lowest, highest)
    image = middle.imshow(
        shown, norm=norm, cmap=HEAT, aspect="auto", interpolation="nearest", extent=(0, clients, classes, 0)
    )
    if clients <= NUMBERED[0] and classes <= NUMBERED[1]:
        _number(middle, table, norm)
    _groups(middle, beside, facts, order)
    above.stairs(table.sum(0), np.arange(clients + 1), fill=True, color=BAR)
    beside.stairs(table.sum(1), np.arange(classes + 1), fill=True, color=BAR, orientation="horizontal", baseline=0.5)
    _label_axes(middle, above, beside, [facts.class_names[c] for c in order], clients)
    bar = made.colorbar(image, ax=(middle, beside), location="bottom", shrink=0.5, aspect=50, pad=0.02)
    folded = [-(-count // MOST) for count in (clients, classes)]
    per = f", mean over {folded[0]} × {folded[1]} neighbours" if max(folded) > 1 else ""
    bar.set_label(f"images of the class at the client{per}; white: none", fontsize=SMALL, color=MUTED)
    bar.outline.set_visible(False)
    bar.minorticks_off()
    ticks = _round_values(lowest, highest)
    bar.set_ticks(ticks, labels=[f"{value:,g}" for value in ticks])
    bar.ax.tick_params(labelsize=SMALL, labelcolor=MUTED, length=0)
    return made


def _round_values(lowest: float, highest: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range, every other one where they are many."""
    steps = [float(f"{digit}e{power}") for power in range(-4, 7) for digit in (1, 2, 5)]
    found = [value for value in steps if lowest * 0.999 <= value <= highest * 1.001]
    return found if len(found) < 9 else found[::2]


def _side(count: int, cell: float) -> float:
    """Units of a side of the map: `cell` a client or class, within SIDES."""
    return min(max(SIDES[0], cell * count), SIDES[1])


def _binned(table: np.ndarray, axis: int) -> np.ndarray:
    """The table with as many neighbours averaged as leave at most MOST cells along the axis."""
    together = -(-table.shape[axis] // MOST)
    starts = np.arange(0, table.shape[axis], together)
    sums = np.add.reduceat(table, starts, axis)
    each = np.diff([*starts, table.shape[axis]])
    return sums / (each[:, None] if axis == 0 else each)


def _plain(axes: Axes) -> Axes:
    axes.set_facecolor(CARD)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=MUTED)
    axes.tick_params(which="minor", length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(MUTED)
        axis.label.set_fontsize(SMALL)
    return axes


def _number(axes: Axes, table: np.ndarray, norm: LogNorm) -> None:
    for row, column in np.argwhere(table):
        value = int(table[row, column])
        colour = CARD if norm(value) > 0.4 else INK  # where both have the same contrast
        axes.text(column + 0.5, row + 0.5, f"{value}", ha="center", va="center", fontsize=SMALL - 1.5, color=colour)


def _groups(middle: Axes, beside: Axes, facts: PartitionFacts, order: np.ndarray) -> None:
    """A line between many, medium and few, whose names stand in the margin."""
    group_of = {c: name for name, members in facts.groups.items() for c in members}
    names = [group_of[int(c)] for c in order]
    first = 0
    for row in range(1, len(names) + 1):
        if row == len(names) or names[row] != names[first]:
            beside.text(
                1.0, (first + row) / 2, names[first], transform=beside.get_yaxis_transform(), rotation=90, ha="left",
                va="center", fontsize=SMALL, color=MUTED,
            )  # fmt: skip
            if row < len(names):
                for axes in (middle, beside):
                    axes.axhline(row, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
            first = row


def _label_axes(middle: Axes, above: Axes, beside: Axes, names: list[str], clients: int) -> None:
    whole = FuncFormatter(lambda value, _: f"{value:,.0f}")
    if len(names) <= NAMED:
        middle.set_yticks(np.arange(len(names)) + 0.5, names)
    else:
        middle.yaxis.set_major_locator(MaxNLocator(10, integer=True))
        middle.set_ylabel(f"{len(names):,} classes, head to tail")
    if clients <= NUMBERED[0]:
        middle.set_xticks(np.arange(clients) + 0.5, [str(client) for client in range(clients)])
    else:
        middle.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        middle.xaxis.set_major_formatter(whole)
    middle.set_xlabel("client")
    above.tick_params(labelbottom=False)
    above.set_ylabel("images\na client")
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    above.yaxis.set_major_formatter(whole)
    above.grid(axis="y", color=GRID, linewidth=1)
    above.set_axisbelow(True)
    beside.tick_params(labelleft=False)
    beside.set_xscale("log")
    beside.set_xlabel("images a class")
    beside.set_xlim(left=0.8)
    tens = [value for value in (1, 10, 100, 1000, 10_000, 100_000) if value <= beside.get_xlim()[1]]
    tens = tens[:: 1 if len(tens) < 4 else 2]
    beside.set_xticks(tens, [f"{value:,}" for value in tens])
    beside.minorticks_off()
