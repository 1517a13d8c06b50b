"""What a sweep recorded of its tuning, for the page: how every method was tuned, each candidate's score, the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.errors import UserError
from fedscale.report.records import Candidate, Tuning


def read_tuning(path: Path) -> Tuning | None:
    """The tuning.json of a sweep's folder; None where there is none, or no method had more than one candidate.

    Raises UserError for a file that lacks a key.
    """
    if not path.exists():
        return None
    told = files.read_json(path)
    try:
        methods = {
            method: tuple(_candidate(row, entry["chosen"]) for row in entry["candidates"])
            for method, entry in told["methods"].items()
        }
        terms = f"{told['metric']} on the {told['split']} split after {told['rounds']} rounds, seed {told['seed']}"
        at = ", ".join(f"{key} {value}" for key, value in told["at"].items())
        tuning = Tuning(str(path.parent), f"{terms}{f', at {at}' if at else ''}", int(told["budget"]), methods)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a tuning ({error!r}); `fedscale sweep … --report` writes it again") from None
    return tuning if any(len(tried) > 1 for tried in methods.values()) else None


def _candidate(row: dict[str, Any], chosen: dict[str, Any] | None) -> Candidate:
    score = row.get("score")
    return Candidate(
        values=", ".join(f"{key} {value}" for key, value in row["values"].items()) or "as in the config",
        score=None if score is None else float(score),
        state=str(row["state"]),
        chosen=row["values"] == chosen,
    )
