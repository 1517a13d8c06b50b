"""The figures over all classes: accuracy by round, by group, by share of labelled images, and the stages' times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from fedscale.report import svg
from fedscale.report.compare import Comparison, duration
from fedscale.report.palette import marker_look, role, series
from fedscale.report.records import METRICS, Run
from fedscale.report.statistics import deviation

STAGES = ("caption", "pretrain", "federate", "align")
SCRATCH = 0  # the place in the palette of random weights: grey
DASH = 5.5  # length of a dash in line widths
TICKS = (0.5, 1, 2, 5, 10, 15, 30, 60, 90, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)  # seconds
Styles = dict[str, int]  # a variant's place in the palette, the same in every figure


def by_round(runs: Sequence[Run], styles: Styles, metric: str, salt: str) -> Markup:
    """One of METRICS by round, in percent: seeds thin, their mean bold, the aligned model as a point after it."""
    made = svg.figure(480, 300)
    axes = svg.style(made.add_subplot())
    curves = {variant: _curves(runs, variant, metric) for variant in styles}
    means = {variant: _mean_curve(list(found.values())) for variant, found in curves.items()}
    last = max((x[-1] for x, _ in means.values() if len(x)), default=1)
    after = last * 1.07 + 0.3
    for variant, place in styles.items():
        x, y = means[variant]
        if not len(x):
            continue
        if len(curves[variant]) > 1:
            for seed_x, seed_y in curves[variant].values():
                axes.plot(seed_x, seed_y, color=series(place), linewidth=0.9, alpha=0.35, solid_capstyle="butt")
        # Variants that share a federated stage have the very same curve: each shows through in dashes of its own.
        same = [other for other in styles if np.array_equal(means[other][1], y)]
        dashes = "-" if len(same) == 1 else (DASH * same.index(variant), (DASH, DASH * (len(same) - 1)))
        axes.plot(x, y, color=series(place), linewidth=2.4, linestyle=dashes, dash_capstyle="butt", zorder=3)
        aligned = [run.aligned.scores[metric] for run in runs if run.variant == variant and run.aligned]
        values = [value for value in aligned if value is not None]
        if values:
            end = float(np.mean(values))
            dotted = (0, (1.5, 2))
            axes.plot([x[-1], after], [y[-1], end], color=series(place), linewidth=1.3, linestyle=dotted, zorder=4)
            axes.plot([after], [end], zorder=4, clip_on=False, **marker_look(place, 9.0))
    axes.set_xlabel("round")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(left=0, right=after * 1.02)
    axes.set_ylim(0, min(100.0, 1.06 * axes.get_ylim()[1]))
    return svg.inline(made, f"{metric} accuracy in percent by round, for {', '.join(styles)}", salt)


def by_group(comparison: Comparison, styles: Styles, salt: str, narrow: bool = False) -> Markup:
    """All, many, medium and few of the final models: bars for the means, points for the seeds."""
    made = svg.figure(480 if narrow else 1000, 280)
    axes = svg.style(made.add_subplot())
    width = min(0.8 / len(styles), 0.3)
    for variant, place in styles.items():
        for position, metric in enumerate(METRICS):
            x = position + width * (list(styles).index(variant) + 0.5 - len(styles) / 2)
            values = comparison.values(variant, metric)
            if not values:
                continue
            axes.bar(x, np.mean(values), width=width * 0.86, color=series(place), zorder=2)
            if len(values) > 1:
                _seed_points(axes, x, values)
            if len(styles) <= (4 if narrow else 7):
                digits = 0 if narrow and len(styles) > 3 else 1  # bars that narrow have no room for more
                svg.label(axes, f"{np.mean(values):.{digits}f}", (x, max(values)), above=5)
    axes.set_xticks(range(len(METRICS)), [metric.capitalize() for metric in METRICS])
    axes.tick_params(axis="x", labelsize=13, labelcolor=role("ink"))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xlim(-0.5, len(METRICS) - 0.5)
    axes.margins(y=0.14)
    return svg.inline(made, f"accuracy over all, many, medium and few classes, for {', '.join(styles)}", salt)


def fractions(points: Sequence[Run], place: int) -> Figure:
    """Accuracy over the share of labelled images, from random (grey) and from pretrained weights.

    Lines are means over the seeds, bands one sample deviation around them, small points the seeds.
    """
    made = svg.figure(480, 300)
    axes = svg.style(made.add_subplot())
    found = {f: [p for run in points for p in run.probe if p.fraction == f] for f in shares_of(points)}
    shares = np.array(list(found))
    curves = [(SCRATCH, [[point.scratch for point in found[share]] for share in found])]
    curves.append((max(place, 1), [[point.pretrained for point in found[share]] for share in found]))
    lower = min(curves, key=lambda curve: float(np.mean(curve[1][-1])))[0]
    for look, values in curves:
        means = np.array([np.mean(seeds) for seeds in values])
        spread = np.array([deviation(seeds) or 0.0 for seeds in values])
        axes.fill_between(shares, means - spread, means + spread, color=series(look), alpha=0.16, linewidth=0)
        for share, seeds in zip(shares, values, strict=True):
            if len(seeds) > 1:
                axes.plot([share] * len(seeds), seeds, "o", markersize=2.5, color=series(look), alpha=0.6, zorder=4)
        dashes = "--" if look == SCRATCH else "-"
        axes.plot(shares, means, linestyle=dashes, linewidth=2.2, zorder=3, **marker_look(look, 8.0))
        below = look == lower
        for share, value in zip(shares, means, strict=True):
            svg.label(axes, f"{value:.1f}", (share, value), above=-9 if below else 9)
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{100 * share:g}%\n{found[share][0].images:,}" for share in found])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("share and number of labelled training images")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.margins(x=0.09, y=0.2)
    return made


def name_curves(made: Figure, place: int, scratch: str, pretrained: str) -> None:
    """A legend above the figure of `fractions`, for where no page carries one."""
    axes = made.axes[0]
    for look, name, dashes in ((max(place, 1), pretrained, "-"), (SCRATCH, scratch, "--")):
        axes.plot([], [], linestyle=dashes, linewidth=2.2, label=name, **marker_look(look, 8.0))
    made.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=svg.SMALL, labelcolor=role("ink"))


def shares_of(points: Sequence[Run]) -> list[float]:
    """The shares of the labelled images that any of the runs was probed with."""
    return sorted({point.fraction for run in points for point in run.probe})


def stage_times(seconds: dict[str, dict[str, float]], salt: str) -> Markup:
    """Seconds a stage (mean over the seeds) for each variant, stacked in the order in which they run."""
    made = svg.figure(480, 60 + 40 * len(seconds))
    axes = svg.style(made.add_subplot(), grid="x")
    longest = max((sum(stages.values()) for stages in seconds.values()), default=1.0) or 1.0
    for row, stages in enumerate(seconds.values()):
        left = 0.0
        for stage in STAGES:
            if stage in stages:
                fill, gap = role(f"stage-{stage}"), role("card")
                axes.barh(
                    row, stages[stage], left=left, height=0.62, color=fill, edgecolor=gap, linewidth=1.5, zorder=2
                )
                left += stages[stage]
        svg.label(axes, duration(left), (left, row), beside=6)
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.tick_params(axis="y", labelcolor=role("ink"), labelsize=svg.FONT_SIZE)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.28)
    step = next((step for step in TICKS if step * 4 >= longest), longest / 4)
    axes.set_xticks(np.arange(0, longest * 1.1, step))
    axes.xaxis.set_major_formatter(lambda value, _: brief(value))
    return svg.inline(made, f"time a stage for {', '.join(seconds)}", salt)


def brief(seconds: float) -> str:
    """A tick's label: `0`, `30 s`, `1.5 min`, `2 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s" if seconds else "0"


def _curves(runs: Sequence[Run], variant: str, metric: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Rounds and values by seed, of the rounds that were evaluated."""
    found = {}
    for run in runs:
        rows = [row for row in run.rounds if run.variant == variant and row.get(metric) is not None]
        if rows:
            found[run.seed] = (np.array([row["round"] for row in rows]), np.array([row[metric] for row in rows], float))
    return found


def _mean_curve(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the seeds, at the rounds that all of them have."""
    if not curves:
        return np.array([]), np.array([])
    rounds = sorted(set.intersection(*(set(x.tolist()) for x, _ in curves)))
    values = [[y[x.tolist().index(number)] for number in rounds] for x, y in curves]
    return np.array(rounds), np.mean(values, axis=0)


def _seed_points(axes: Axes, x: float, values: Sequence[float]) -> None:
    spread = np.linspace(-0.035, 0.035, len(values))
    edge = role("card")
    axes.plot(x + spread, values, "o", markersize=5, color=role("ink"), markeredgecolor=edge, zorder=4)
