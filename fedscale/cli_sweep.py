"""`fedscale sweep SWEEP.yaml [key=value...]`: methods × axes × seeds, tuned, resumable, local or as a Slurm array."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fedscale.cli_common import AsJson, console, exits, show_report
from fedscale.errors import UserError
from fedscale.progress import TerminalReporter
from fedscale.session import Session

if TYPE_CHECKING:
    from fedscale.sweep import Sweep

SweepWords = Annotated[
    list[str],
    typer.Argument(
        metavar="SWEEP... [key=value...]",
        help="Sweep files, merged in order; then single keys, of the sweep file or else of its base config.",
    ),
]


@exits
def sweep(
    words: SweepWords,
    show: Annotated[bool, typer.Option("--list", help="Show the runs and how far they are, and stop.")] = False,
    only: Annotated[int | None, typer.Option(min=0, metavar="N", help="Carry out run N of the list alone.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once, a process each (tasks at once, with Slurm).")
    ] = None,
    print_slurm: Annotated[bool, typer.Option("--print-slurm", help="Print the script of a Slurm array.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Submit the unfinished runs as a Slurm array.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Report the finished runs, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Carry out methods × axes × seeds of a sweep file, each method tuned by one grid; resumes what is unfinished."""
    from fedscale.distributed.launch import this_worker
    from fedscale.sweep import execute, execute_one, open_sweep

    asked = {"--list": show, "--only": only is not None, "--print-slurm": print_slurm, "--submit": submit}
    asked["--report"] = report
    chosen = [name for name, given in asked.items() if given]
    if len(chosen) > 1:
        raise UserError(f"{chosen[0]} and {chosen[1]}: expected one of them")
    opened = open_sweep([*words, *([f"jobs={1 if only is not None else jobs}"] if jobs or only is not None else [])])
    if show:
        _show_list(opened, as_json)
    elif print_slurm or submit:
        _as_array(opened, words, jobs or 0, submit)
    elif report:
        _show_results(opened, as_json)
    else:
        if this_worker().world > 1:
            raise UserError(
                "sweep: started as one of several workers; each run is one process here: use --jobs, --submit, or "
                "`fedscale run` with a run folder's config.yaml under the launcher"
            )
        session = Session(TerminalReporter())
        with session.stopping_on(signal.SIGTERM, signal.SIGINT):
            if only is not None:
                execute_one(opened, only, session)
                return
            failed = execute(opened, session)
        _show_results(opened, as_json)
        if failed:
            raise UserError(f"{len(failed)} of the sweep's runs diverged: {failed[0]}")


def _show_list(opened: Sweep, as_json: bool) -> None:
    from fedscale.sweep import runs
    from fedscale.sweep.status import counted, listed

    rows = listed(opened, runs(opened))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("", "run", "tuned values", "state", "", title=str(opened.folder), box=None)
    for row in rows:
        shown = ", ".join(f"{key} {value}" for key, value in row["values"].items())
        table.add_row(*map(escape, (str(row["number"]), row["run"], shown, row["state"], row["note"])))
    console().print(table)
    console().print(f"{len(rows)} runs: {counted(rows)}", markup=False)


def _as_array(opened: Sweep, words: list[str], at_once: int, submitted: bool) -> None:
    from fedscale.sweep import runs, slurm
    from fedscale.sweep.status import complete

    waves = slurm.phases([run for run in runs(opened) if not complete(run)])
    if not waves:
        raise UserError(f"{opened.folder}: all runs are complete; --report shows the results")
    path = slurm.script(opened, words, waves[0], at_once)
    if not submitted:
        print(path.read_text(encoding="utf-8"), end="")
        if len(waves) > 1:
            later = slurm.array(waves[1], at_once)
            print(f"# then, once the tuning is done: sbatch --array={later} {path}", file=sys.stderr)
        return
    for numbers, job in zip(waves, slurm.submit(path, waves, at_once), strict=True):
        print(f"submitted job {job}: runs {slurm.array(numbers, at_once)}")


def _show_results(opened: Sweep, as_json: bool) -> None:
    from fedscale.sweep.results import describe
    from fedscale.sweep.tuning import record

    told, folder = record(opened), describe(opened)
    if opened.tuning and not as_json:
        console().print(_tuning_table(told))
    show_report([folder], None, as_json)
    if opened.tuning and not as_json:
        console().print(f"tuning: {folder / 'tuning.md'}", markup=False, soft_wrap=True)


def _tuning_table(told: dict[str, Any]) -> Table:
    title = f"tuning: {told['metric']} on the validation split, {told['rounds']} rounds, seed {told['seed']}"
    table = Table("method", "tried", "chosen", "score", title=f"{title}, at most {told['budget']} a method", box=None)
    for method, entry in told["methods"].items():
        values = entry["chosen"]
        row: dict[str, Any] = next((row for row in entry["candidates"] if row["values"] == values), {})
        shown = "not yet" if values is None else ", ".join(f"{k} {v}" for k, v in values.items()) or "as in the config"
        score = f"{row['score']:.1f}" if row.get("score") is not None else "–"
        tried = sum(row["state"] == "done" for row in entry["candidates"])
        table.add_row(*map(escape, (method, f"{tried} of {len(entry['candidates'])}", shown, score)))
    return table
