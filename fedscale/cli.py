"""The command line: `fedscale STAGE CONFIG... [key=value...]`. Imports nothing heavy before a command needs it."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedscale import __version__, files
from fedscale.config import Config, load_config, load_recipe, to_yaml
from fedscale.errors import EXIT_REQUEUE, EXIT_USER, Stopped, UserError
from fedscale.progress import TerminalReporter
from fedscale.session import Session

app = typer.Typer(
    name="fedscale",
    help="Federated learning on long-tailed data, with a multimodal LLM helping on the server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shards_app = typer.Typer(name="shards", help="Build and inspect WebDataset shards.", no_args_is_help=True)
app.add_typer(shards_app)

Words = Annotated[
    list[str], typer.Argument(metavar="CONFIG... [key=value...]", help="YAML files, merged in order; then single keys.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def main() -> None:
    """The entry point of `fedscale` and `python -m fedscale`."""
    app()


def _exits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its exit codes: 2 with one line for the user's mistake, 75 when stopped with its state saved."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            _complain(f"error: {error}")
            raise typer.Exit(EXIT_USER) from None
        except Stopped as stopped:
            _complain(f"{stopped}; the same command resumes it")
            raise typer.Exit(EXIT_REQUEUE) from None
        except Exception as error:
            if (line := files.disk_trouble(error)) is None:
                raise
            _complain(f"error: {line}")
            raise typer.Exit(EXIT_USER) from None

    return wrapped


def _complain(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr)


def _console() -> Console:
    return Console(highlight=False)


def _run_stage_command(stage: str, words: list[str], dry_run: bool) -> None:
    config = load_config(words)
    if dry_run:
        print(to_yaml(config), end="")
        return
    from fedscale.runs import RunFolder
    from fedscale.stages import children, needed, run_stage

    session = Session(TerminalReporter())
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        for child in children(config):
            if stage in needed(child):
                RunFolder.of(child).describe(child)
                run_stage(child, stage, session)


@app.command()
@_exits
def run(words: Words, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Run every stage of every variant and seed, then the report; resumes what is unfinished."""
    config = load_config(words)
    if dry_run:
        print(to_yaml(config), end="")
        return
    from fedscale.pipeline import execute

    session = Session(TerminalReporter())
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        execute(config, session)
    _report([Path(config.out) / config.name], None, as_json)


@app.command()
@_exits
def caption(words: Words, dry_run: DryRun = False) -> None:
    """Stage 1a: the MLLM captions the open pool."""
    _run_stage_command("caption", words, dry_run)


@app.command()
@_exits
def pretrain(words: Words, dry_run: DryRun = False) -> None:
    """Stage 1b: pretrain the compact model by Dynamic Weighted Distillation."""
    _run_stage_command("pretrain", words, dry_run)


@app.command()
@_exits
def federate(words: Words, dry_run: DryRun = False) -> None:
    """Stage 2: federated finetuning on the clients' long-tailed data."""
    _run_stage_command("federate", words, dry_run)


@app.command()
@_exits
def align(words: Words, dry_run: DryRun = False) -> None:
    """Stage 3: align the global model on a class-balanced set of the captioned pool."""
    _run_stage_command("align", words, dry_run)


@app.command()
@_exits
def report(
    words: Annotated[
        list[str], typer.Argument(metavar="RUN... | CONFIG...", help="Run folders to compare, or a config.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of report.html and summary.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tables, plots and report.html of one run or of several, compared."""
    if all(Path(word).is_dir() for word in words):
        _report([Path(word) for word in words], out, as_json)
        return
    if not any(word.endswith((".yaml", ".yml")) for word in words):
        missing = next(word for word in words if not Path(word).is_dir())
        raise UserError(f"{missing}: no such run folder; name folders such as runs/demo, or a config")
    config: Config = load_config(words)
    _report([Path(config.out) / config.name], out, as_json)


def _report(runs: list[Path], out: Path | None, as_json: bool) -> None:
    from fedscale.report import closing_lines, default_out, table
    from fedscale.report import report as write_report

    out = out or default_out(runs)
    rows = write_report(runs, out, TerminalReporter())
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    console = _console()
    console.print(table(rows))
    for line in closing_lines(rows):
        console.print(line, markup=False)
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)


@app.command()
@_exits
def fetch(words: Words) -> None:
    """Download the teachers' weights into the local caches, for nodes without network."""
    from fedscale.server.fetch import fetch as fetch_weights

    for line in fetch_weights(load_config(words), TerminalReporter()):
        print(line)


@app.command()
@_exits
def methods(as_json: AsJson = False) -> None:
    """The federated methods, with their citation and what they cost beyond FedAvg."""
    from fedscale.federated.methods import METHODS

    rows = [{"method": m.name, "citation": m.citation, "extra_cost": m.extra_cost} for m in METHODS.values()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("method", "citation", "extra cost", box=None)
    for row in rows:
        table.add_row(*row.values())
    _console().print(table)


@shards_app.command("build")
@_exits
def shards_build(
    words: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [key=value...]", help="Recipe files, e.g. shards/shapes.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards and their manifest.")],
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Build WebDataset shards and their manifest from a source of images."""
    recipe = load_recipe(words)
    if dry_run:
        print(to_yaml(recipe), end="")
        return
    from fedscale.data.build import build_shards

    build_shards(recipe, out, TerminalReporter())
    _show_status(out, as_json)


@shards_app.command("status")
@_exits
def shards_status(folder: Annotated[Path, typer.Argument(metavar="DIR")], as_json: AsJson = False) -> None:
    """Shards, samples and class counts of built shards."""
    _show_status(folder, as_json)


@shards_app.command("verify")
@_exits
def shards_verify(folder: Annotated[Path, typer.Argument(metavar="DIR")], as_json: AsJson = False) -> None:
    """Read every shard from end to end and hold it against the manifest: bytes, counts, labels, keys."""
    from fedscale.data.verify import verify_shards

    verify_shards(folder, TerminalReporter())
    _show_status(folder, as_json)


def _show_status(folder: Path, as_json: bool) -> None:
    from fedscale.data.build import status

    found = status(folder)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    names = list(found["splits"]["train"]["class_counts"])
    table = Table(
        "split", "shards", "samples", "MB", "images a class, first to last", title=f"{found['name']} in {folder}"
    )
    for split, entry in found["splits"].items():
        counts = [entry["class_counts"].get(name, 0) for name in names]
        shown = ", ".join(map(str, counts if len(counts) <= 12 else [*counts[:6], "…", *counts[-3:]]))
        table.add_row(split, str(entry["shards"]), f"{entry['samples']:,}", f"{entry['bytes'] / 1e6:.1f}", shown)
    _console().print(table)


def _version(show: bool) -> None:
    if show:
        print(f"fedscale {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
