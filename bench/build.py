"""What parallel processes gain when shards are built: `python bench/build.py --source CIFAR10_PARQUET_FOLDER`.

Builds CIFAR-10-LT (60,000 JPEG images of 1 KB, copied out of parquet first) and `shapes` (drawn, twice the demo's
number) with one process and with each of `--jobs`, turn by turn, so that the ratios compare like with like; the faster
of two rounds counts. Checks that all give the same bytes. Prints seconds, images a second, the ratio to one process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedscale.config import RecipeConfig, load_recipe
from fedscale.config.schema import ShapesConfig
from fedscale.data.build import build_shards
from fedscale.data.manifest import Manifest
from fedscale.progress import SilentReporter

ROUNDS = 2


def recipes(source: str | None) -> list[RecipeConfig]:
    """The builds to be timed; CIFAR-10 only where its folder is given."""
    shapes = load_recipe(["shards/shapes.yaml"])
    drawn = replace(shapes, shapes=ShapesConfig(600, 200), imbalance_factor=None)
    return [drawn] if source is None else [load_recipe(["shards/cifar10_lt.yaml", f"source={source}"]), drawn]


def timed(recipe: RecipeConfig, jobs: int) -> tuple[float, Manifest]:
    """Seconds of one build, and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        manifest = build_shards(recipe, Path(folder) / "shards", SilentReporter(), jobs)
        return time.perf_counter() - began, manifest


def main() -> None:
    """Time every build with every number of processes, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="folder of CIFAR-10 as parquet; without it, shapes alone are built")
    parser.add_argument("--jobs", type=int, nargs="+", default=[2], help="numbers of processes to compare with one")
    arguments = parser.parse_args()
    table = Table("recipe", "shards", "images", "jobs", "s", "images/s", "× one", title=f"{os.cpu_count()} cores")
    for recipe in recipes(arguments.source):
        rounds = [{jobs: timed(recipe, jobs) for jobs in (1, *arguments.jobs)} for _ in range(ROUNDS)]
        best = {jobs: min(builds[jobs][0] for builds in rounds) for jobs in rounds[0]}
        manifest = rounds[0][1][1]
        for jobs, (_, other) in (pair for builds in rounds for pair in builds.items()):
            assert other.splits == manifest.splits, f"{recipe.name}: {jobs} processes gave other bytes than one"
        shards, images = sum(map(len, manifest.splits.values())), sum(map(manifest.num_samples, manifest.splits))
        for jobs, seconds in best.items():
            row = [f"{shards}", f"{images:,}", f"{jobs}", f"{seconds:.1f}", f"{images / seconds:,.0f}"]
            table.add_row(recipe.name, *row, f"{best[1] / seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
