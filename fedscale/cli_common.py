"""What every command shares: exit codes, the one-line complaint, the console, common arguments."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedscale import files
from fedscale.errors import EXIT_BUG, EXIT_REQUEUE, EXIT_USER, Stopped, UserError, WorkerLost
from fedscale.progress import TerminalReporter

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... [key=value...]",
        help="YAML files, merged in order; then single keys: configs/demo.yaml federate.rounds=5.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def exits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its exit codes: 2 with one line for the user's mistake, 75 when stopped with its state saved."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            complain(f"error: {error}")
            raise typer.Exit(EXIT_USER) from None
        except Stopped as stopped:
            complain(f"{stopped}; the same command resumes it")
            raise typer.Exit(EXIT_REQUEUE) from None
        except WorkerLost as lost:
            complain(f"error: {lost}")
            raise typer.Exit(EXIT_BUG) from None
        except Exception as error:
            if _is_lost_rank(error):
                complain(f"error: {error}")  # which says that the same command resumes
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(EXIT_BUG)  # torch may abort, or wait, while it tears down groups with a dead rank
            if (line := files.disk_trouble(error)) is None:
                raise
            complain(f"error: {line}")
            raise typer.Exit(EXIT_USER) from None

    return wrapped


def _is_lost_rank(error: Exception) -> bool:
    """Whether it says that another rank is gone; its class lives beside torch.distributed, which is slow to import."""
    return type(error).__name__ == "RankLost" and type(error).__module__.startswith("fedscale.distributed")


def complain(line: str) -> None:
    """Write one line to stderr, whatever line breaks a library put into it."""
    print(" ".join(line.split()), file=sys.stderr)


def console() -> Console:
    """The terminal for tables and closing lines."""
    return Console(highlight=False)


def show_report(
    runs: list[Path], out: Path | None, as_json: bool, whole_table: bool = False, against: str = ""
) -> None:
    """Write the report of these runs and show its short table, or the whole one; as JSON, its rows or the table."""
    from fedscale.report import closing_lines, default_out, scoreboard, table, terminal
    from fedscale.report import report as write_report

    out = out or default_out(runs)
    rows = write_report(runs, out, TerminalReporter(), against)
    if as_json:
        print(json.dumps(scoreboard(rows, against).to_dict() if whole_table else rows, indent=1))
        return
    screen = console()
    screen.print(terminal(scoreboard(rows, against)) if whole_table else table(rows, against))
    for line in closing_lines(rows, against):
        screen.print(line, markup=False)
    if whole_table:
        screen.print(f"table: {out / 'table.md'}, {out / 'table.tex'}", markup=False, soft_wrap=True)
    screen.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)
