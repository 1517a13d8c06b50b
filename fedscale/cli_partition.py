"""`fedscale shards partition`: which client gets what in a config's run, as a table, a picture and an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedscale.cli_common import AsJson, Words, console, exits
from fedscale.config import Config, load_config
from fedscale.progress import TerminalReporter

if TYPE_CHECKING:
    from fedscale.data.partition_facts import PartitionFacts


@exits
def shards_partition(
    words: Words,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw clients × classes, head to tail, as .png or .svg.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Export it: another run reads data.partition.file=FILE.json."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the partition that a config's run uses: sizes, classes, and how far the clients are from the whole."""
    config = load_config(words)
    from fedscale.data.build import ensure_shards
    from fedscale.data.partition import make_partition
    from fedscale.data.partition_facts import facts_of
    from fedscale.data.store import open_store
    from fedscale.evaluation import class_groups
    from fedscale.stages import children

    if plot is not None:
        from fedscale.report.partition_picture import check_format

        check_format(plot)
    run = children(config)[0]  # with several seeds, the first one's
    data, reporter = run.data, TerminalReporter()
    # The very calls of federation: what does not decode is in no partition.
    train = open_store(ensure_shards(data, reporter), "train", data.image_size, reporter, data.max_corrupt)
    partition = make_partition(train.labels, len(train.class_names), data.partition, run.seed, keys=train.keys)
    groups = class_groups([int((train.labels == c).sum()) for c in range(len(train.class_names))], run.eval.groups)
    facts = facts_of(partition, train.labels, train.class_names, groups, run.seed)
    if out is not None:
        partition.save(out, keys=train.keys)
    if plot is not None:
        from fedscale.report.partition_picture import save_picture

        save_picture(facts, plot, _title(run))
    if as_json:
        print(json.dumps(facts.to_dict(), indent=1, ensure_ascii=False))
        return
    console().print(_table(facts, _title(run)))
    if len(config.seeds) > 1:
        others = ", ".join(map(str, config.seeds[1:]))
        console().print(
            f"seeds {others} have partitions of their own: seeds=[{config.seeds[1]}] shows one", markup=False
        )
    for path in (out, plot):
        if path is not None:
            console().print(f"written: {path}", markup=False, soft_wrap=True)


def _title(run: Config) -> str:
    """`cifar10_lt: dirichlet_equal, α 0.5, 20 clients, seed 7`."""
    settings = run.data.partition
    detail = {
        "iid": "",
        "pathological": f", {settings.classes_per_client} classes each",
        "long_tail_client": f", imbalance factor {settings.client_imbalance_factor:g} each",
    }.get(settings.kind, f", α {settings.alpha:g}")
    drawn = f"{settings.kind}{detail}" if settings.file is None else settings.file
    return f"{run.data.name or run.data.format}: {drawn}, {settings.clients:,} clients, seed {run.seed}"


def _table(facts: PartitionFacts, title: str) -> Table:
    found = facts.to_dict()
    table = Table("", "", title=title, box=None, show_header=False)
    table.add_row("images", f"{found['images']:,} of {found['classes']:,} classes")
    for name, key in (("images a client", "client_sizes"), ("classes a client", "classes_a_client")):
        table.add_row(name, "{min:,} to {max:,}, median {median:,g}".format(**found[key]))
    table.add_row(
        "distance to the whole",
        "{distance:.3f}, by chance {distance_by_chance:.3f} (total variation)".format(**found),
    )
    bare, tail = found["clients_without_tail"], found["tail_classes"]
    said = "no class counts as few" if bare is None else f"{bare:,} clients hold none of the {tail:,} few classes"
    table.add_row("without the tail", said)
    if facts.note:
        table.add_row("repaired", facts.note)
    return table
