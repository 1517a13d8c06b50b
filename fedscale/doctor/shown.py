"""The findings as a table, a line each: a mark, what was looked at, what was found, the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fedscale.doctor.finding import Finding, Gravity

MARKS = {
    Gravity.FINE: ("✓", "green"),
    Gravity.UNCHECKED: ("–", "dim"),
    Gravity.NOTE: ("•", "yellow"),
    Gravity.MISTAKE: ("✗", "red"),
    Gravity.BROKEN: ("✗", "bold red"),
}
WORDS = {Gravity.BROKEN: "broken", Gravity.MISTAKE: "mistaken", Gravity.NOTE: "to note", Gravity.UNCHECKED: "unchecked"}


def table(findings: Sequence[Finding]) -> Table:
    """A borderless table in the findings' order."""
    shown = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for finding in findings:
        mark, style = MARKS[finding.gravity]
        grave = finding.gravity >= Gravity.MISTAKE
        text = Text(finding.found, style="" if finding.gravity != Gravity.UNCHECKED else "dim")
        if finding.remedy:
            text.append(f" → {finding.remedy}", style="" if grave else "dim")
        shown.add_row(Text(mark, style=style), Text(finding.check, style=style if grave else ""), text)
    return shown


def lines(findings: Sequence[Finding]) -> list[str]:
    """The same for a file or a pipe, whose width is nobody's to know."""
    width = max((len(finding.check) for finding in findings), default=0)
    told = [f"{one.found} → {one.remedy}" if one.remedy else one.found for one in findings]
    return [f"{MARKS[one.gravity][0]}  {one.check:<{width}}  {text}" for one, text in zip(findings, told, strict=True)]


def summary(findings: Sequence[Finding]) -> str:
    """One line: how many of each gravity."""
    counts = Counter(finding.gravity for finding in findings)
    parts = [f"{counts[gravity]} {word}" for gravity, word in WORDS.items() if counts[gravity]]
    return f"{len(findings)} checks: {', '.join(parts) or 'all fine'}"
