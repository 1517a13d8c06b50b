"""Reads run folders, compares variants over seeds, and writes them down: for programs, for a reader, and for a paper.

`report` is for any run folders, `run` is the stage; `table`, `scoreboard` and `verdict` are for the terminal. Importing
this package loads no matplotlib and no jinja2: a figure is only paid for when a page is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.config import Config
from fedscale.progress import Reporter
from fedscale.report.collect import collect
from fedscale.report.compare import closing_lines, summary_rows, verdict
from fedscale.report.scoreboard import scoreboard
from fedscale.report.tables import table
from fedscale.report.written import latex, markdown, terminal
from fedscale.runs import RunFolder
from fedscale.session import Session

__all__ = ["closing_lines", "default_out", "report", "run", "scoreboard", "table", "terminal", "verdict"]


def run(config: Config, run: RunFolder, session: Session) -> dict[str, Any]:
    """The report stage of one run folder, or of a parent with its variants and seeds: returns paths and the verdict."""
    out = run.stage("report")
    rows = report([run.path], out, session.reporter)
    return {"runs": len(rows), "verdict": verdict(rows), "html": str(out / "report.html")}


def report(run_paths: list[Path], out: Path, reporter: Reporter, against: str = "") -> list[dict[str, Any]]:
    """Compare runs and return the summary's rows; differences are to the variant `against`, or the usual baseline.

    Writes summary.json, report.html, the table as table.md and table.tex, and its figures/ to `out`. A parent folder
    stands for its child runs; unfinished children are left out, and said so. Raises UserError for a path that is no
    run folder, where no run is finished, and for an `against` that is no variant.
    """
    from fedscale.report.figures import write_figures  # matplotlib and jinja2 take a second to import
    from fedscale.report.html import render

    collection = collect(run_paths)
    for line in collection.left_out:
        reporter.say(f"left out: {line}")
    rows = summary_rows(collection.runs)
    board = scoreboard(rows, against)
    files.write_json(out / "summary.json", rows)
    files.write_text(out / "table.md", markdown(board))
    files.write_text(out / "table.tex", latex(board))
    with reporter.task("report", total=None, unit="figures") as task:
        write_figures(collection, rows, out / "figures", task, against)
        files.write_text(out / "report.html", render(collection, rows, task, against))
    return rows


def default_out(run_paths: list[Path]) -> Path:
    """Where a comparison goes unless told: beside the one run (or parent) given, else runs/report-<names>/."""
    if len(run_paths) == 1:
        return run_paths[0] / "report"
    names = [path.resolve().name for path in run_paths]
    return run_paths[0].parent / f"report-{'-'.join(names)}"
