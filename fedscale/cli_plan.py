"""`fedscale plan`: what a config takes on given hardware, before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedscale.cli_common import AsJson, Words, console, exits
from fedscale.config import load_config
from fedscale.errors import UserError

WIDE = 160  # columns where there is no terminal


@exits
def plan(
    words: Words,
    nodes: Annotated[int, typer.Option(help="Nodes whose ranks compute together.")] = 1,
    gpu: Annotated[str, typer.Option(help="v100, a100, l40s, h100, h200, b200, or cpu.")] = "h200",
    gpus: Annotated[int, typer.Option(help="GPUs a node; 0: eight.")] = 0,
    ranks: Annotated[int, typer.Option(help="Ranks a node of --gpu cpu; 0: one.")] = 0,
    images: Annotated[int, typer.Option(help="Images of all clients, where the recipe does not say.")] = 0,
    pool: Annotated[int, typer.Option(help="Images of the open pool, likewise.")] = 0,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of a text; 0: caption.max_new_tokens.")] = 0,
    rates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measured rates to plan with, or with --fit, to write.")
    ] = None,
    fit: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Fit the rates to finished runs on this device; repeatable."),
    ] = None,
    terms: Annotated[bool, typer.Option("--terms", help="Show what the times are made of, and rest on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict time, memory, network and storage of every stage, and what limits; no data or weights are needed."""
    config = load_config(words)
    if min(gpus, ranks, images, pool, answer_tokens) < 0:
        raise UserError("--gpus, --ranks, --images, --pool, --answer-tokens: expected 0 or more")
    from fedscale.planning import tell
    from fedscale.planning.cluster import Cluster
    from fedscale.planning.fit import fitted, runs_in
    from fedscale.planning.hardware import hardware
    from fedscale.planning.plan import plan as make_plan
    from fedscale.planning.rates import Rates, load_rates

    node = hardware(gpu)
    ignored, other = ("--gpus", "--ranks") if node.is_cpu else ("--ranks", "--gpus")
    if gpus if node.is_cpu else ranks:
        raise UserError(f"{ignored}: says nothing with --gpu {gpu}; expected {other}")
    cluster = Cluster(node, nodes, (ranks or 1) if node.is_cpu else gpus or node.per_node)
    if fit:
        known = fitted(runs_in(fit, gpu, ranks if node.is_cpu else gpus), gpu)
        if rates is not None:
            known.save(rates)
    else:
        known = load_rates(rates, node) if rates is not None else Rates(gpu)
    made = make_plan(config, cluster, known, images, pool, answer_tokens)
    if as_json:
        print(json.dumps(tell.as_dict(made), indent=1))
        return
    screen = console()
    if not screen.is_terminal:
        screen.width = WIDE
    tell.show(made, screen, terms)
