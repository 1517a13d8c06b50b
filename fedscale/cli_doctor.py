"""`fedscale doctor`: whether this machine, launch and config will run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fedscale.cli_common import AsJson, complain, console, exits
from fedscale.config import Config, load_config

if TYPE_CHECKING:
    from fedscale.doctor.finding import Finding


@exits
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG... key=value...]", help="A config whose needs are checked too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, this launch and what a config needs; 1: something is broken, 2: the config is mistaken."""
    config = load_config(words) if words else Config()
    from fedscale.doctor.examine import examine
    from fedscale.doctor.finding import exit_code

    seen = examine(config, bool(words), complain)
    code = exit_code(seen.findings)
    if seen.is_main:
        if as_json:
            rows = [finding.as_dict() for finding in seen.findings]
            print(json.dumps({"exit_code": code, "ranks": seen.ranks, "checks": rows}, indent=1))
        else:
            _show(seen.findings)
    if seen.lost is not None:
        sys.stdout.flush()
        raise seen.lost  # ends this process the way that a lost rank needs
    if code:
        raise typer.Exit(code)


def _show(findings: list[Finding]) -> None:
    from fedscale.doctor.shown import lines, summary, table

    screen = console()
    if screen.is_terminal:
        screen.print(table(findings))
        screen.print(summary(findings), style="dim")
    else:
        print("\n".join([*lines(findings), summary(findings)]))
