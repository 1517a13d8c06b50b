"""The comparison table as Markdown, as LaTeX, and on the terminal: the same lines of the same scoreboard.

The report's page shows those `lines` too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedscale.report.compare import MINUS, signed
from fedscale.report.scoreboard import Row, Scoreboard, Section
from fedscale.report.statistics import Difference, Spread

DASH = "\N{EN DASH}"
LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    MINUS: "$-$",
    DASH: "--",
    "\N{EM DASH}": "---",
    "·": r"$\cdot$",
    "α": r"$\alpha$",
    "²": r"$^2$",
    "√": r"$\surd$",
}


class Cell(NamedTuple):
    """What a cell shows: `58.8` and `± 0.6`, or `+7.8` and `[+3.3, +12.2]`; `best` ones stand out."""

    number: str
    around: str = ""
    best: bool = False


class Line(NamedTuple):
    """A row of a section; a `change` belongs to the line above it."""

    label: str
    cells: list[Cell]
    change: bool


def lines(section: Section, num_seeds: int) -> list[Line]:
    """The section's rows; where a variant has other than `num_seeds` seeds, its label says how many."""
    found = []
    for row in section.rows:
        values = [_value(cell, best) for cell, best in zip(row.cells, row.best, strict=True)]
        found.append(Line(_label(row, num_seeds), values, change=False))
        if any(row.changes):
            found.append(Line("Δ", [_change(change) for change in row.changes], change=True))
    return found


def markdown(board: Scoreboard) -> str:
    """The table as Markdown (GitHub's), a table a section."""
    parts = []
    for section in board.sections:
        rows = [["Variant", *(column.title for column in section.columns)]]
        for line in lines(section, len(board.seeds)):
            rows.append([line.label, *(_joined(cell, str, "**{}**".format) for cell in line.cells)])
        head, *body = ("| " + " | ".join(_markdown(text) for text in row) + " |" for row in rows)
        rule = "|---|" + "---:|" * len(section.columns)
        parts.append("\n".join([f"**{_markdown(section.title)}**", "", head, rule, *body]))
    parts.append("\n".join(f"- {_markdown(note)}" for note in board.notes))
    return "\n\n".join(parts) + "\n"


def latex(board: Scoreboard) -> str:
    """The table as LaTeX (package booktabs), a table a section, with the notes as comments at the top."""
    parts = ["% needs \\usepackage{booktabs}\n" + "\n".join(f"% {note}" for note in board.notes)]
    for section in board.sections:
        rows = []
        for line in lines(section, len(board.seeds)):
            cells = [_joined(cell, _latex, r"\textbf{{{}}}".format) for cell in line.cells]
            rows.append(" & ".join([r"\quad $\Delta$" if line.change else _latex(line.label), *cells]) + r" \\")
        head = " & ".join(["Variant", *(_latex(column.title) for column in section.columns)]) + r" \\"
        begin = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(section.title)}}}"]
        begin += [rf"\label{{tab:{section.key}}}", rf"\begin{{tabular}}{{l{'r' * len(section.columns)}}}", r"\toprule"]
        end = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        parts.append("\n".join([*begin, head, r"\midrule", *rows, *end]))
    return "\n\n".join(parts) + "\n"


def terminal(board: Scoreboard) -> Group:
    """The table for a terminal, a table a section, the notes below."""
    shown: list[Table | Text] = []
    for section in board.sections:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("variant")
        for column in section.columns:
            table.add_column(column.title, justify="right")
        for line in lines(section, len(board.seeds)):
            style = "dim" if line.change else ""
            table.add_row(Text(line.label, style=style), *(_terminal(cell, line.change) for cell in line.cells))
        shown += [Text(section.title, style="bold"), table, Text()]
    return Group(*shown, *(Text(note, style="dim") for note in board.notes))


def _label(row: Row, num_seeds: int) -> str:
    if len(row.seeds) == num_seeds:
        return row.variant
    return f"{row.variant} ({len(row.seeds)} of {num_seeds} seeds)"


def _value(spread: Spread | None, best: bool) -> Cell:
    if spread is None:
        return Cell(DASH)
    return Cell(f"{spread.mean:,.1f}", "" if spread.deviation is None else f"± {spread.deviation:,.1f}", best)


def _change(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell("")
    if difference.low is None:
        return Cell(signed(difference.mean))
    return Cell(signed(difference.mean), f"[{signed(difference.low)}, {signed(difference.high)}]")


def _joined(cell: Cell, escaped: Callable[[str], str], bold: Callable[[str], str]) -> str:
    number = bold(escaped(cell.number)) if cell.best else escaped(cell.number)
    return f"{number} {escaped(cell.around)}" if cell.around else number


def _terminal(cell: Cell, change: bool) -> Text:
    text = Text(cell.number, style="bold" if cell.best else "")
    if cell.around:  # an interval goes below its difference, so that four columns fit 80 characters
        text.append(f"\n{cell.around}" if change else f" {cell.around}", style="not bold dim")
    if change:
        text.style = "dim"
    return text


def _markdown(text: str) -> str:
    return text.replace("|", r"\|").replace("_", r"\_").replace("<", "&lt;")


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
