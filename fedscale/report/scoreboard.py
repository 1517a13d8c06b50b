"""The comparison table as data: sections of columns, a row a variant, each followed by its difference to the baseline.

Terminal, Markdown, LaTeX, HTML and JSON (`written`) all show this one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedscale.report.compare import Comparison
from fedscale.report.over_rounds import WINDOW
from fedscale.report.records import METRICS
from fedscale.report.statistics import Difference, Spread

BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
FLOPS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP"))
TIME = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
Units = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Column:
    """A metric of summary.json: its heading, with the unit, and which way is better (1 up, −1 down, 0 neither)."""

    metric: str
    title: str
    better: int
    compared: bool = True  # whether rows of differences show it
    scale: float = 1.0  # of the unit


@dataclass(frozen=True)
class Row:
    """A variant's values by column; None where no seed has one. `best` marks those that no other variant beats."""

    variant: str
    seeds: tuple[int, ...]
    cells: tuple[Spread | None, ...]
    best: tuple[bool, ...]
    changes: tuple[Difference | None, ...]  # against the baseline at the same seeds; empty for the baseline itself


@dataclass(frozen=True)
class Section:
    """Some columns of the whole table: as many as fit a page."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Scoreboard:
    """The whole table; `notes` say how to read it."""

    baseline: str
    seeds: tuple[int, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For programs: numbers in the columns' units, means, deviations, and differences with their intervals."""
        return asdict(self)


def scoreboard(rows: Sequence[dict[str, Any]], against: str = "") -> Scoreboard:
    """The table of summary.json's rows. Raises UserError for a baseline `against` that is no variant."""
    comparison = Comparison(tuple(rows), against)
    splits = sorted({row.get("split", "test") for row in rows})
    sections = [_section(comparison, key, title, columns) for key, title, columns in _parts(comparison, splits)]
    notes = _notes(comparison, splits, rows)
    return Scoreboard(comparison.baseline, tuple(comparison.seeds), tuple(s for s in sections if s), tuple(notes))


def _parts(comparison: Comparison, splits: list[str]) -> list[tuple[str, str, list[Column]]]:
    def accuracies(prefix: str = "") -> list[Column]:
        return [Column(prefix + metric, metric.capitalize(), 1) for metric in METRICS]

    split = " and ".join(splits)
    chosen = f"oracle: chosen on the {split} split itself" if "test" in splits else f"chosen on the {split} split"
    final = [
        ("final", "Final model, accuracy (%)", accuracies()),
        ("last", "Last round, accuracy (%)", accuracies("last.")),
    ]
    if not any(row.get("aligned") for row in comparison.rows) and any(row.get("last") for row in comparison.rows):
        final = [("last", "Last round, which is the final model, accuracy (%)", accuracies())]
    return [
        *final,
        ("best", f"Best round ({chosen}), accuracy (%)", accuracies("best.")),
        ("mean10", "Mean of the last 10 evaluated rounds, accuracy (%)", accuracies("mean10.")),
        (
            "errors",
            "Final model, errors and fairness over clients (%)",
            [
                Column("balanced_error", "Bal. error", -1),
                Column("ece", "ECE", -1),
                Column("client_mean", "Client mean", 1),
                Column("client_variance", "Client var.", -1),
                Column("client_worst_decile", "Worst 10%", 1),
            ],
        ),
        (
            "cost",
            "Cost of a round, and of the whole run",
            [
                _in_units(comparison, "bytes_down", "Down", BYTES),
                _in_units(comparison, "bytes_up", "Up", BYTES),
                _in_units(comparison, "flops", "Compute", FLOPS),
                _in_units(comparison, "seconds", "Time", TIME),
            ],
        ),
    ]


def _in_units(comparison: Comparison, metric: str, title: str, units: Units) -> Column:
    """A column in the largest unit that the largest of its values reaches."""
    most = max((value for variant in comparison.variants for value in comparison.values(variant, metric)), default=0.0)
    scale, unit = next((pair for pair in units if most >= pair[0]), units[-1])
    return Column(metric, f"{title} ({unit})", 0, compared=False, scale=scale)


def _section(comparison: Comparison, key: str, title: str, columns: Sequence[Column]) -> Section | None:
    """A section without the columns that no run has a value for; None where that leaves none."""
    spreads = {c: [_scaled(comparison.spread(v, c.metric), c) for v in comparison.variants] for c in columns}
    kept = [column for column in columns if any(spreads[column])]
    rows = []
    for index, variant in enumerate(comparison.variants):
        cells = tuple(spreads[column][index] for column in kept)
        best = tuple(_is_best(cell, spreads[column], column.better) for cell, column in zip(cells, kept, strict=True))
        changes: tuple[Difference | None, ...] = ()
        if variant != comparison.baseline and any(column.compared for column in kept):
            changes = tuple(comparison.difference(variant, c.metric) if c.compared else None for c in kept)
        rows.append(Row(variant, tuple(comparison.seeds_of(variant)), cells, best, changes))
    return Section(key, title, tuple(kept), tuple(rows)) if kept else None


def _scaled(spread: Spread | None, column: Column) -> Spread | None:
    if spread is None or column.scale == 1.0:
        return spread
    deviation = None if spread.deviation is None else spread.deviation / column.scale
    return Spread(spread.mean / column.scale, deviation, spread.seeds)


def _is_best(cell: Spread | None, column: Sequence[Spread | None], better: int) -> bool:
    """Whether no other variant's mean is better, as it is shown: with one decimal."""
    found = [round(better * other.mean, 1) for other in column if other]
    return bool(cell and better and len(found) > 1 and round(better * cell.mean, 1) == max(found))


def _notes(comparison: Comparison, splits: list[str], rows: Sequence[dict[str, Any]]) -> list[str]:
    seeds = ", ".join(map(str, comparison.seeds))
    several = any(len(comparison.seeds_of(variant)) > 1 for variant in comparison.variants)
    notes = [
        f"Mean ± sample standard deviation over the seeds ({seeds})." if several else f"One run each (seed {seeds})."
    ]
    if len(comparison.variants) > 1:
        notes.append(
            f"Δ: the mean difference to {comparison.baseline} at equal seeds"
            + (", with the 95% interval of Student's t for paired differences." if several else ".")
        )
    if any(row.get("best") for row in rows):
        known = (
            ": an oracle, which no one has before the test"
            if "test" in splits
            else ", in which the test split has no part"
        )
        notes.append(
            "Last, best and mean are of the global model after rounds, before the final alignment if there is one; the "
            f"best round is the one with the highest All on the {' and '.join(splits)} split{known}."
        )
    if any(0 < row.get("rounds_evaluated", 0) < WINDOW for row in rows):
        notes.append("Where fewer than ten rounds were evaluated, the mean of the last ten is over those.")
    if any(row.get("client_mean") is not None for row in rows):
        notes.append(
            "Clients: accuracy on each client's own class distribution (class accuracies weighted by the client's "
            "class shares), its mean, variance (squared percent) and mean over the worst tenth of the clients."
        )
    if any(row.get("flops") is not None for row in rows):
        notes.append(
            "A round's bytes (fp32) and floating-point operations at the clients are those of its whole cohort "
            "together, as the mean over cohorts; a multiply-add is two operations."
        )
    return notes
