"""`fedscale shards ...`: build and inspect WebDataset shards."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fedscale.cli_common import AsJson, DryRun, Words, console, exits
from fedscale.cli_partition import shards_partition
from fedscale.config import load_config, load_recipe, to_yaml
from fedscale.errors import EXIT_USER, UserError
from fedscale.progress import TerminalReporter
from fedscale.session import Session

if TYPE_CHECKING:
    from fedscale.data.verify import Fault

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a manifest.json.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Shards at a time; by default as many as the machine has cores.")]

shards_app = typer.Typer(name="shards", help="Build and inspect WebDataset shards.", no_args_is_help=True)


@shards_app.command("build")
@exits
def shards_build(
    words: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [key=value...]", help="Recipe files, e.g. shards/shapes.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards and their manifest.")],
    jobs: Jobs = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Build WebDataset shards and their manifest from a source of images."""
    recipe = load_recipe(words)
    if dry_run:
        print(to_yaml(recipe), end="")
        return
    from fedscale.data.build import build_shards

    build_shards(recipe, out, TerminalReporter(), jobs)
    _show_status(out, as_json)


@shards_app.command("rehearsal")
@exits
def shards_rehearsal(
    out: Annotated[Path, typer.Option(help="Folder for the images and the list files.")],
    classes: Annotated[int, typer.Option(help="Classes, 1,000 at most.")] = 1000,
    images: Annotated[int, typer.Option(help="Images of the training list.")] = 115_846,
    largest: Annotated[int, typer.Option(help="Listed images of the largest class.")] = 1280,
    smallest: Annotated[int, typer.Option(help="Listed images of the smallest class.")] = 5,
    test: Annotated[int, typer.Option(help="Test images a class.")] = 10,
    pool: Annotated[int, typer.Option(help="Training images a class that no list names: the open pool.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the images and of the classes' sizes.")] = 7,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; by default as many as there are cores.")] = None,
) -> None:
    """Draw a procedural set in ImageNet-LT's folders, list files and class sizes, to rehearse with."""
    from fedscale.data.rehearsal import Rehearsal, write_rehearsal

    wanted = Rehearsal(classes, images, largest, smallest, test, pool, seed)
    write_rehearsal(wanted, out, TerminalReporter(), jobs)
    console().print(
        f"{images:,} listed images of {classes:,} classes, {classes * pool:,} for the pool, {classes * test:,} to test "
        f"on, in {out}",
        soft_wrap=True,
    )


@shards_app.command("import")
@exits
def shards_import(
    patterns: Annotated[
        list[str],
        typer.Argument(
            metavar="PATTERN...", help="Tars: folders, globs, {00000..00999}.tar, s3://, gs://, 'pipe:CMD FILE.tar'."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the manifest; the tars stay where they lie.")],
    hash: Annotated[bool, typer.Option("--hash", help="Record each shard's SHA-256, which reads it whole.")] = False,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave broken shards out.")] = False,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Make an open pool of tars that exist already, in WebDataset's layout (img2dataset's, say)."""
    from fedscale.data.pools import import_pool

    import_pool(patterns, out, TerminalReporter(), hash, jobs, skip_broken)
    _show_status(out, as_json)


@shards_app.command("status")
@exits
def shards_status(folder: Folder, as_json: AsJson = False) -> None:
    """Shards, samples and class counts of built or imported shards."""
    _show_status(folder, as_json)


shards_app.command("partition")(shards_partition)


@shards_app.command("verify")
@exits
def shards_verify(
    folder: Folder,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Walk the tars' headers alone: no SHA-256, labels, class counts.")
    ] = False,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Hold every shard against the manifest: bytes, counts, SHA-256, members, labels, keys; exit code 2 for a fault."""
    from fedscale.data.manifest import Manifest
    from fedscale.data.verify import verify_shards

    faults = verify_shards(folder, TerminalReporter(), headers_only, jobs)
    manifest = Manifest.load(folder)
    total = {
        "shards": sum(map(len, manifest.splits.values())),
        "samples": sum(map(manifest.num_samples, manifest.splits)),
        "bad": len({fault.shard for fault in faults}),
    }
    if as_json:
        print(json.dumps({**total, "faults": [asdict(fault) for fault in faults]}, indent=1))
    else:
        if faults:
            console().print(_faults_table(faults))
        console().print("{shards:,} shards, {samples:,} samples: {bad:,} bad".format(**total))
    if faults:
        raise typer.Exit(EXIT_USER)


@shards_app.command("near-duplicates")
@exits
def shards_near_duplicates(
    pool: Annotated[Path, typer.Argument(metavar="POOL", help="Shards with an open pool, built or imported.")],
    of: Annotated[Path, typer.Option("--of", metavar="DATA", help="Shards whose images must not be in the pool.")],
    split: Annotated[str, typer.Option(help="The split of DATA to compare with.")] = "test",
    distance: Annotated[int | None, typer.Option(help="Bits of the 64-bit perceptual hash that may differ.")] = None,
    features: Annotated[
        str | None, typer.Option(metavar="DIR", help="Stored CLIP embeddings of the pool (a caption folder).")
    ] = None,
    similarity: Annotated[float, typer.Option(help="Cosine similarity from which an embedding is too near.")] = 0.95,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Find the pool's near-duplicates of test images; captioning, pretraining and alignment then leave them out."""
    from fedscale.data.manifest import Manifest
    from fedscale.data.near_duplicates import DISTANCE, mark_near_duplicates

    found, data = Manifest.load(pool), Manifest.load(of)
    embeddings = None
    if features is not None:
        from fedscale.server.caption.similar import embeddings_of

        embeddings = embeddings_of(features, found, data, split, similarity)
    limit = DISTANCE if distance is None else distance
    mark_near_duplicates(found, data, TerminalReporter(), split, limit, jobs, embeddings)
    _show_status(pool, as_json)


@shards_app.command("join")
@exits
def shards_join(
    words: Words,
    out: Annotated[Path, typer.Option(help="Folder for the joined tars and their manifest.")],
    as_json: AsJson = False,
) -> None:
    """Write the captioned pool as training tars: image, texts, and LLaVA's conversations in one sample."""
    from fedscale.data.open_pool import open_pool
    from fedscale.runs import RunFolder
    from fedscale.server.caption.join import join_shards
    from fedscale.stages import children, needed, with_located_teachers

    captioned = next((child for child in children(load_config(words)) if "caption" in needed(child)), None)
    if captioned is None:
        raise UserError(f"{words[0]}: no variant captions a pool; expected one with pretrain or align enabled")
    session = Session(TerminalReporter())
    config = with_located_teachers(captioned)
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        pool = open_pool(config.data, session.reporter)
        done = join_shards(config, pool, RunFolder.of(config), out, session)
    if as_json:
        print(json.dumps(done, indent=1))
        return
    left_out = ", ".join(f"{number:,} {status}" for status, number in done["left_out"].items()) or "none"
    console().print(
        f"{done['shards']:,} shards, {done['images']:,} images in {out}; left out: {left_out}", soft_wrap=True
    )


def _faults_table(faults: list[Fault]) -> Table:
    table = Table("shard", "samples expected", "found", "verdict", box=None)
    for fault in faults:
        found = "–" if fault.found is None else f"{fault.found:,}"
        table.add_row(*map(escape, (fault.shard, f"{fault.expected:,}", found, fault.reason)))
    return table


def _show_status(folder: Path, as_json: bool) -> None:
    from fedscale.data.build import status

    found = status(folder)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(
        "split", "shards", "samples", "MB", "images a class, first to last", title=f"{found['name']} in {folder}"
    )
    for split, entry in found["splits"].items():
        counts = list(entry["class_counts"].values())
        shown = ", ".join(map(str, counts if len(counts) <= 12 else [*counts[:6], "…", *counts[-3:]]))
        table.add_row(split, str(entry["shards"]), f"{entry['samples']:,}", f"{entry['bytes'] / 1e6:,.1f}", shown)
    console().print(table)
    if found["imported"]:
        left_out = f", {found['excluded']} broken shards left out" if found["excluded"] else ""
        console().print(f"imported: {found['base'] or folder}{left_out}", markup=False, soft_wrap=True)
    if near := found["near_duplicates"]:
        limits = ", ".join(f"{name} {limit}" for name, limit in near["threshold"].items())
        told = f"{near['count']:,} of {near['scanned']:,} images ({near['method']}, {limits})"
        console().print(f"near-duplicates of {near['of']}: {told}", markup=False, soft_wrap=True)
