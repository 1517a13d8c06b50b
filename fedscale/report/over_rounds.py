"""The three ways to state an accuracy over the rounds: the last, the best, and the mean of the last ten evaluated.

All are of the global model as the rounds left it, before the alignment that may follow the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedscale.report.records import METRICS
from fedscale.report.statistics import mean

WINDOW = 10
WAYS = ("last", "best", "mean10")
Scores = dict[str, float | None]


def over_rounds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{last, best, best_round, mean10, rounds_evaluated} of the rounds that were evaluated; None where none was.

    `last`, `best` and `mean10` have a value for every one of METRICS. The best round is the first with the highest
    accuracy over all classes; its groups are those of the same round. Fewer than ten rounds are averaged as they are.
    """
    judged = [row for row in rows if row.get("all") is not None]
    if not judged:
        return {"last": None, "best": None, "best_round": None, "mean10": None, "rounds_evaluated": 0}
    best = max(judged, key=lambda row: row["all"])
    return {
        "last": _scores(judged[-1:]),
        "best": _scores([best]),
        "best_round": best["round"],
        "mean10": _scores(judged[-WINDOW:]),
        "rounds_evaluated": len(judged),
    }


def _scores(rows: Sequence[dict[str, Any]]) -> Scores:
    return {metric: mean([row[metric] for row in rows if row.get(metric) is not None]) for metric in METRICS}
