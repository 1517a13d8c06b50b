"""The command line: `fedscale STAGE CONFIG... [key=value...]`. Imports nothing heavy before a command needs it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from fedscale import __version__
from fedscale.cli_cluster import prepare, submit
from fedscale.cli_common import AsJson, DryRun, Words, console, exits, show_report
from fedscale.cli_doctor import doctor
from fedscale.cli_methods import NARROW, methods_paragraphs, methods_table
from fedscale.cli_plan import plan
from fedscale.cli_shards import shards_app
from fedscale.cli_sweep import sweep
from fedscale.config import Config, load_config, to_yaml
from fedscale.errors import UserError
from fedscale.progress import TerminalReporter
from fedscale.session import Session

WIDE = 200  # columns of a table that goes to a file or a pipe, which would be taken for a terminal of 80

app = typer.Typer(
    name="fedscale",
    help="Federated learning on long-tailed data, with a multimodal LLM helping on the server.",
    epilog="To begin with: fedscale run configs/demo.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The command line, as `fedscale.__main__` starts it."""
    app()


def _run_stage_command(stage: str, words: list[str], dry_run: bool, **options: Any) -> None:
    config = load_config(words)
    if dry_run:
        print(to_yaml(config), end="")
        return
    from fedscale import api

    session = Session(TerminalReporter())
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        api.stage(config, stage, session, **options)


@app.command()
@exits
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
    show_report([Path(config.out) / config.name], None, as_json)


@app.command()
@exits
def caption(
    words: Words,
    dry_run: DryRun = False,
    status: Annotated[bool, typer.Option("--status", help="Show how far captioning is, and stop.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed shards, and rows that are not ok, again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stage 1a: the MLLM captions the open pool, as one of any number of workers."""
    if as_json and not status:
        raise UserError("--json: shows what --status finds, as JSON; give both")
    if status and retry_failed:
        raise UserError("--status and --retry-failed: expected one of them")
    if status:
        _show_captions(load_config(words), as_json)
        return
    _run_stage_command("caption", words, dry_run, again=True, **({"retry_failed": True} if retry_failed else {}))


def _show_captions(config: Config, as_json: bool) -> None:
    from fedscale.runs import RunFolder
    from fedscale.server.caption.status import shown
    from fedscale.server.caption.status import status as captions_of
    from fedscale.stages import children, needed, stage_folder, with_located_teachers

    folders: dict[str, Config] = {}
    for child in children(config):
        if "caption" in needed(child):
            folder = child.caption.dir or str(stage_folder(child, "caption").path.resolve())
            folders.setdefault(folder, child)
    found = [captions_of(with_located_teachers(child), RunFolder.of(child)) for child in folders.values()]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for one in found:
        console().print(shown(one))


@app.command()
@exits
def pretrain(
    words: Words,
    dry_run: DryRun = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Keep a torch.profiler trace of a few steps in pretrain/trace.json.")
    ] = False,
) -> None:
    """Stage 1b: pretrain the compact model by Dynamic Weighted Distillation, on one process or many."""
    _run_stage_command("pretrain", words, dry_run, **({"profile": True} if profile else {}))


@app.command()
@exits
def federate(words: Words, dry_run: DryRun = False) -> None:
    """Stage 2: federated finetuning on the clients' long-tailed data."""
    _run_stage_command("federate", words, dry_run)


@app.command()
@exits
def align(words: Words, dry_run: DryRun = False) -> None:
    """Stage 3: align the global model on a class-balanced set of the captioned pool."""
    _run_stage_command("align", words, dry_run)


@app.command()
@exits
def report(
    words: Annotated[
        list[str], typer.Argument(metavar="RUN... | CONFIG...", help="Run folders to compare, or a config.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of report.html, summary.json, table.md and table.tex.")
    ] = None,
    whole_table: Annotated[
        bool, typer.Option("--table", help="Show the whole table: rounds, errors, fairness, cost, intervals.")
    ] = False,
    baseline: Annotated[str, typer.Option(help="The variant that others are compared with.", metavar="VARIANT")] = "",
    as_json: AsJson = False,
) -> None:
    """Tables, plots and report.html of one run or of several, compared."""
    if all(Path(word).is_dir() for word in words):
        show_report([Path(word) for word in words], out, as_json, whole_table, baseline)
        return
    if not any(word.endswith((".yaml", ".yml")) for word in words):
        missing = next(word for word in words if not Path(word).is_dir())
        raise UserError(f"{missing}: no such run folder; name folders such as runs/demo, or a config")
    config: Config = load_config(words)
    show_report([Path(config.out) / config.name], out, as_json, whole_table, baseline)


@app.command()
@exits
def fetch(words: Words) -> None:
    """Download the teachers' weights into the local caches, for nodes without network."""
    from fedscale.server.fetch import fetch as fetch_weights

    for line in fetch_weights(load_config(words), TerminalReporter()):
        print(line)


@app.command()
@exits
def methods(as_json: AsJson = False) -> None:
    """The federated methods: citation, cost beyond FedAvg, options with their defaults, and where each runs."""
    from fedscale import api

    rows = api.methods()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    screen = console()
    if not screen.is_terminal:
        screen.width = WIDE
    for shown in methods_paragraphs(rows) if screen.width < NARROW else [methods_table(rows)]:
        screen.print(shown)


for command in (sweep, prepare, submit, plan, doctor):  # behind the stages, in `--help`
    app.command()(command)
app.add_typer(shards_app)


def _version(show: bool) -> None:
    if show:
        print(f"fedscale {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    local_rank: Annotated[
        int | None, typer.Option("--local_rank", hidden=True, help="What the deepspeed launcher adds.")
    ] = None,
) -> None:
    pass
