"""The tuning: every candidate's score on the validation split, the choice, and the sweep's runs with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedscale import files
from fedscale.config import to_dict
from fedscale.errors import UserError
from fedscale.runs import RunFolder
from fedscale.stages import needed
from fedscale.sweep.plan import Point, Sweep, SweepRun
from fedscale.sweep.status import complete, failure


def runs(sweep: Sweep) -> Iterator[SweepRun]:
    """All runs in their order: candidates first, then methods × axes × seeds, with what is chosen by now.

    Raises UserError when every candidate of a method diverged.
    """
    yield from sweep.tuning
    number = len(sweep.tuning)
    for method in sweep.methods:
        values = chosen(sweep, method)
        after = tuple(run.number for run in sweep.tuning if run.method == method) if values is None else ()
        for point in sweep.points:
            for seed in sweep.config.seeds:
                config = sweep.final(method, point, values or {}, seed)
                yield SweepRun(number, "final", method, point, values or {}, config, after)
                number += 1


def chosen(sweep: Sweep, method: str) -> Point | None:
    """The method's tuned values; None while candidates are unfinished.

    The highest score wins, of equal ones the first. Raises UserError when every candidate diverged.
    """
    if len(sweep.candidates[method]) == 1:
        return sweep.candidates[method][0]
    if method in sweep.choices:
        return sweep.choices[method]
    tried = [run for run in sweep.tuning if run.method == method]
    if not all(complete(run) or failure(run) for run in tried):
        return None
    scores = [score(sweep, run) for run in tried]
    if all(value is None for value in scores):
        raise UserError(f"tune: every candidate of {method} diverged ({failure(tried[0])}); change tune.grid")
    best = max(range(len(tried)), key=lambda index: -1.0 if (found := scores[index]) is None else found)
    sweep.choices[method] = tried[best].values
    return tried[best].values


def score(sweep: Sweep, run: SweepRun) -> float | None:
    """A finished candidate's score in percent, after its last stage; None for one that diverged or is unfinished."""
    if not complete(run):
        return None
    value = _evaluation(run)[sweep.config.tune.metric]
    if value is None:
        raise UserError(f"tune.metric={sweep.config.tune.metric}: no class is in this group; choose another metric")
    return float(value)


def record(sweep: Sweep) -> dict[str, Any]:
    """Write `tuning.json`: grid, budget, every candidate with its scores, and the choices; returns what it holds."""
    told = to_dict(sweep.config.tune)
    told["at"] = {key: sweep.config.tune.at.get(key, values[0]) for key, values in sweep.config.axes.items()}
    told["split"] = "validation"
    told["methods"] = {}
    for method, candidates in sweep.candidates.items():
        tried = [run for run in sweep.tuning if run.method == method]
        rows = [_row(sweep, run) for run in tried]
        told["methods"][method] = {
            "candidates": rows or [{"values": candidates[0], "state": "the only one, not run"}],
            "chosen": chosen(sweep, method),
        }
    files.write_json(sweep.folder / "tuning.json", told)
    files.write_text(sweep.folder / "tuning.md", markdown(told))
    return told


def markdown(told: dict[str, Any]) -> str:
    """`tuning.json` for people."""
    settings = f"{told['rounds']} rounds, seed {told['seed']}, judged by {told['metric']} on the validation split"
    at = ", ".join(f"{key} {value}" for key, value in told["at"].items())
    lines = [
        f"At most {told['budget']} candidates a method; {settings}{f', at {at}' if at else ''}. Scores in percent.",
        "",
        "| method | values | score | |",
        "|---|---|---|---|",
    ]
    for method, entry in told["methods"].items():
        for row in entry["candidates"]:
            shown = "–" if row.get("score") is None else f"{row['score']:.2f}"
            mark = "chosen" if row["values"] == entry["chosen"] else ""
            note = mark if row["state"] == "done" else row["state"]
            lines.append(f"| {method} | {_values(row['values'])} | {shown} | {note} |")
    return "\n".join(lines) + "\n"


def _row(sweep: Sweep, run: SweepRun) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run.name, "values": run.values, "score": score(sweep, run)}
    if complete(run):
        names = ("all", "many", "medium", "few")
        return {**row, "state": "done", "scores": {name: _evaluation(run)[name] for name in names}}
    return {**row, "state": f"diverged: {line}" if (line := failure(run)) else "not finished"}


def _evaluation(run: SweepRun) -> dict[str, Any]:
    stage = needed(run.config)[-1]
    found: dict[str, Any] = files.read_json(RunFolder.of(run.config).stage(stage) / "evaluation.json")
    return found


def _values(values: Point) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "as in the config"
