"""A finding: what one check found, how grave it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from typing import Any

from fedscale.errors import EXIT_BUG, EXIT_DONE, EXIT_USER


class Gravity(IntEnum):
    """From what is well to what stops runs. `MISTAKE`: the config, or the launch, asks for what is not there."""

    FINE = 0
    UNCHECKED = 1
    NOTE = 2
    MISTAKE = 3
    BROKEN = 4


EXIT_CODES = {Gravity.BROKEN: EXIT_BUG, Gravity.MISTAKE: EXIT_USER}


@dataclass(frozen=True)
class Finding:
    """One line. `facts` are its numbers, with the unit in each name; `host` and `rank` are where it was found.

    `worse`: of equally grave findings of several ranks the one with the highest is shown.
    """

    check: str
    gravity: Gravity
    found: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    worse: float = 0.0
    host: str = ""
    rank: int = 0

    def as_dict(self) -> dict[str, Any]:
        row = asdict(self)
        del row["worse"]
        return {**row, "gravity": self.gravity.name.lower()}


def of_error(check: str, text: str, gravity: Gravity = Gravity.MISTAKE) -> Finding:
    """The finding of an error's line, which ends, by custom, in `; remedy`."""
    found, _, remedy = text.rpartition("; ")
    return Finding(check, gravity, found or remedy, remedy if found else "")


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """One finding a check, the worst of all ranks'; where they differ it says whose it is."""
    checks = dict.fromkeys(finding.check for finding in findings)
    return [_gravest([one for one in findings if one.check == check]) for check in checks]


def _gravest(findings: Sequence[Finding]) -> Finding:
    worst = max(findings, key=lambda one: (one.gravity, one.worse))
    if len({(one.gravity, one.found) for one in findings}) == 1:
        return worst
    hosts = len({one.host for one in findings})
    where = f"rank {worst.rank}, host {worst.host}"
    kind = "worst" if worst.worse or worst.gravity else "first"
    return replace(worst, found=f"{worst.found} ({where}: the {kind} of {len(findings)} on {hosts} host(s))")


def exit_code(findings: Iterable[Finding]) -> int:
    """By the gravest: 0 fine, or notes; 1 something is broken that will stop runs; 2 a mistake, and nothing graver."""
    worst = max((finding.gravity for finding in findings), default=Gravity.FINE)
    return EXIT_CODES.get(worst, EXIT_DONE)
