"""report.html: one self-contained page of records, figures and a template. Everything that runs wrote is escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedscale.progress import Task
from fedscale.report import classes, confusions, figures, palette, plots, svg
from fedscale.report.compare import Comparison, duration, percent, signed, verdict
from fedscale.report.facts import config_differences, facts, notes
from fedscale.report.figures import places
from fedscale.report.records import METRICS, Captions, Collection, Evaluation, Run
from fedscale.report.scoreboard import scoreboard
from fedscale.report.statistics import mean
from fedscale.report.written import lines

TEMPLATE = "report.html.jinja"


def render(collection: Collection, rows: list[dict[str, Any]], task: Task, against: str = "") -> str:
    """The page as text. The same runs give the same bytes: it holds no date and no random id."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "signed": signed, "duration": duration, "tone": _tone}
    return environment.get_template(TEMPLATE).render(context(collection, rows, task, against))


def context(collection: Collection, rows: list[dict[str, Any]], task: Task, against: str) -> dict[str, Any]:
    """Everything that the template shows."""
    comparison, board = Comparison(tuple(rows), against), scoreboard(rows, against)
    place = places(comparison)
    by_variant = figures.by_variant(collection.runs)
    headline = by_variant[comparison.headline]
    alike = figures.comparable(by_variant, comparison.headline)
    comparable = [run for own in alike.values() for run in own]
    shown = {variant: place[variant] for variant in alike}
    probed = figures.probed_runs(by_variant, comparison.headline)
    drawn = {
        "rounds": _by_round(collection.runs, place, task),
        "groups": _both_widths(plots.by_group, comparison, place, "groups", task),
        "classes": _both_widths(classes.per_class, _headline_first(comparable, headline), shown, "classes", task),
        "times": _drawn(task, plots.stage_times(_times(by_variant), "times")),
        "probe": _drawn(task, _fractions(probed, place)) if probed else None,
        "confusions": _drawn(task, _side_by_side(headline[0], alike)) if len(alike) > 1 else None,
    }
    return {
        "title": collection.title,
        "verdict": verdict(rows, against),
        "facts": facts(headline[0]),
        "comparison": comparison,
        "metrics": METRICS,
        "legend": [
            {"name": variant, "series": index % len(palette.SERIES), "marker": palette.marker(index)}
            for variant, index in place.items()
        ],
        "light": palette.css(dark=False),
        "dark": palette.css(dark=True),
        "figures": drawn,
        "board": board,
        "board_lines": {section.key: lines(section, len(board.seeds)) for section in board.sections},
        "smoothing": classes.window(len(headline[0].final.class_names)) if not _named(headline[0]) else None,
        "num_classes": len(headline[0].final.class_names),
        "aligned": [variant for variant, runs in by_variant.items() if runs[0].aligned],
        "confusions": [_confusion(by_variant[variant], task) for variant in _confusion_order(by_variant, comparison)],
        "probe": {"variant": probed[0].variant, "series": max(place[probed[0].variant], 1)} if probed else None,
        "stages": [stage for stage in plots.STAGES if any(stage in run.seconds for run in collection.runs)],
        "tunings": collection.tunings,
        "captions": _captions(collection.runs),
        "notes": notes(collection, comparable),
        "differences": config_differences({variant: runs[0].config for variant, runs in by_variant.items()}),
        "configs": {variant: _yaml(runs[0].config) for variant, runs in by_variant.items()},
        "environments": _environments(collection.runs),
    }


def _drawn(task: Task, figure: Any) -> Any:
    task.advance()
    return figure


def _fractions(probed: list[Run], place: dict[str, int]) -> Markup:
    made = plots.fractions(probed, place[probed[0].variant])
    return svg.inline(made, "accuracy of pretrained and of random weights by share of the training images", "probe")


def _side_by_side(reference: Run, runs: dict[str, list[Run]]) -> Markup:
    made = confusions.side_by_side(reference.final, figures.panels(runs))
    return svg.inline(made, f"confusion matrices of {', '.join(runs)}, rows are true classes", "confusions")


def _both_widths(draw: Callable[..., Markup], what: Any, styles: plots.Styles, salt: str, task: Task) -> dict[str, Any]:
    """A figure as wide as the page, and one that reads on a phone; the style sheet shows one of them."""
    figures = {"broad": draw(what, styles, salt), "narrow": draw(what, styles, f"{salt}-narrow", narrow=True)}
    return _drawn(task, figures)


def _named(run: Run) -> bool:
    return len(run.final.class_names) <= classes.MOST_NAMED


def _by_round(runs: Sequence[Run], place: dict[str, int], task: Task) -> list[dict[str, Any]]:
    rows = [row for run in runs for row in run.rounds]
    return [
        {"metric": metric, "svg": _drawn(task, plots.by_round(runs, place, metric, f"round-{metric}"))}
        for metric in ("all", "few")
        if any(row.get(metric) is not None for row in rows)
    ]


def _headline_first(runs: Sequence[Run], headline: Sequence[Run]) -> list[Run]:
    return [*headline, *(run for run in runs if run not in headline)]


def _times(by_variant: dict[str, list[Run]]) -> dict[str, dict[str, float]]:
    times = {}
    for variant, runs in by_variant.items():
        stages = {stage: [run.seconds[stage] for run in runs if stage in run.seconds] for stage in plots.STAGES}
        times[variant] = {stage: value for stage, values in stages.items() if (value := mean(values)) is not None}
    return times


def _confusion_order(by_variant: dict[str, list[Run]], comparison: Comparison) -> list[str]:
    """The headline first, then every other variant with an alignment."""
    aligned = [variant for variant, runs in by_variant.items() if runs[0].aligned]
    first = comparison.headline if comparison.headline in aligned or not aligned else aligned[-1]
    return [first, *(variant for variant in aligned if variant != first)]


def _confusion(runs: list[Run], task: Task) -> dict[str, Any]:
    """Both matrices of one variant, the counts of its seeds added up."""
    variant, reference = runs[0].variant, runs[0].federated
    salt = f"confusion-{_slug(variant)}"
    before = np.sum([run.federated.confusion for run in runs], axis=0)
    panels = [("after the last round", _matrix(reference, before, f"{salt}-0"))]
    lost: list[confusions.Mistake] = []
    aligned = [run.aligned for run in runs if run.aligned]
    if aligned:
        after = np.sum([evaluation.confusion for evaluation in aligned], axis=0)
        panels = [
            ("before alignment", panels[0][1]),
            ("after alignment", _matrix(reference, after, f"{salt}-1")),
        ]
        lost = confusions.top_confusions(reference, before, after)
    _drawn(task, panels)
    return {"variant": variant, "panels": panels, "lost": lost, "seeds": len(runs)}


def _matrix(reference: Evaluation, counts: np.ndarray, salt: str) -> Markup:
    return svg.inline(confusions.confusion(reference, counts), "confusion matrix, rows are true classes", salt)


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def _captions(runs: Sequence[Run]) -> list[Captions]:
    """The different captionings among the runs; variants that share one show it once."""
    found: list[Captions] = []
    for run in runs:
        if run.captions and run.captions not in found:
            found.append(run.captions)
    return found


def _environments(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The different environments among the runs, apart from command and seed."""
    found: list[dict[str, Any]] = []
    for run in runs:
        entry = {key: value for key, value in run.environment.items() if key not in ("command", "seed")}
        if entry and entry not in found:
            found.append(entry)
    return found


def _tone(change: float | None) -> str:
    if change is None or abs(change) < 0.05:
        return "even"
    return "up" if change > 0 else "down"


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
