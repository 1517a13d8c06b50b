"""`fedscale submit` and `fedscale prepare`: stages as Slurm jobs, and what all of them read."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedscale.cli_common import AsJson, Words, exits
from fedscale.cluster.request import LAUNCHERS, STAGES, Request
from fedscale.config import load_config
from fedscale.errors import UserError
from fedscale.progress import TerminalReporter
from fedscale.session import Session

DEFAULT = Request()


@exits
def submit(
    words: Words,
    stage: Annotated[str, typer.Option(help=f"{', '.join(STAGES)}: all stages, one after another.")] = DEFAULT.stage,
    nodes: Annotated[int, typer.Option(help="Nodes whose ranks compute together.")] = DEFAULT.nodes,
    gpus: Annotated[int, typer.Option(help="GPUs a node; 0: on CPUs.")] = DEFAULT.gpus,
    ranks: Annotated[int, typer.Option(help="Ranks a node; 0: one a GPU, or one.")] = DEFAULT.ranks,
    cpus: Annotated[int, typer.Option(help="Cores a rank; 0: its threads and loader processes.")] = DEFAULT.cpus,
    time: Annotated[str, typer.Option(help="Time limit, as sbatch takes it: 12:00:00.")] = DEFAULT.time,
    partition: Annotated[str, typer.Option(help="Slurm's partition.")] = DEFAULT.partition,
    account: Annotated[str, typer.Option(help="Whose account is charged.")] = DEFAULT.account,
    launcher: Annotated[str, typer.Option(help=f"What starts the ranks: {', '.join(LAUNCHERS)}.")] = DEFAULT.launcher,
    restarts: Annotated[int, typer.Option(help="Times that torchrun starts all ranks again.")] = DEFAULT.restarts,
    array: Annotated[int, typer.Option(help="Captioning workers; 0: one a rank.")] = DEFAULT.array,
    throttle: Annotated[int, typer.Option(help="Captioning workers at a time; 0: all.")] = DEFAULT.throttle,
    stage_in: Annotated[
        str, typer.Option(metavar="FOLDER", help="A disk of each node's own to copy shards and hub weights to.")
    ] = DEFAULT.stage_in,
    container: Annotated[
        str, typer.Option(metavar="IMAGE", help="Apptainer image to run in; folders elsewhere: by APPTAINER_BIND.")
    ] = DEFAULT.container,
    option: Annotated[
        list[str] | None, typer.Option("--sbatch", metavar="OPTION", help="Another option of sbatch's; repeatable.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Write the scripts and print them, without submitting.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a stage, or all of them, to Slurm; the jobs resume what is unfinished."""
    request = Request(
        stage, nodes, gpus, ranks, cpus, time, partition, account, launcher, restarts, array, throttle, stage_in,
        container, tuple(option or ()),
    )  # fmt: skip
    if show and as_json:
        raise UserError("--print and --json: expected one of them; what is printed are scripts")
    config = load_config(words)
    from fedscale.cluster.submit import submit as hand_in
    from fedscale.cluster.submit import write_scripts

    submission = write_scripts(config, request)
    if show:
        print(submission.script(stage).read_text(encoding="utf-8"), end="")
        for name in submission.stages:
            print(f"# {name}: {submission.script(name)}", file=sys.stderr)
        return
    jobs = hand_in(submission)
    if as_json:
        print(json.dumps(jobs, indent=1))
        return
    for job in jobs:
        print(f"{job['stage']}: job {job['job']} ({job['script']})")


@exits
def prepare(
    words: Words,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Copy shards and hub weights there: a node's own disk.")
    ] = None,
) -> None:
    """Make what all stages read, before any starts: shards, client store, offline teachers."""
    from fedscale.cluster import prepare as preparing

    config, session = load_config(words), Session(TerminalReporter())
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        preparing.prepare(config, session)
        if to is not None:
            preparing.stage_in(config, to, session.reporter)
