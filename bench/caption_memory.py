"""Resident memory of captioning over a thousand shards: at the last shard against that at the hundredth.

    python bench/caption_memory.py [--shards 1000] [--images 40] [--workers 2] [--json]

Each worker is a process of its own with the `template` engine, so that what grows is ours: reading, decoding, rows,
journals, markers. The worker notes its resident set (VmRSS) whenever it has published a shard.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedscale.config.schema import Config
from fedscale.data.images import encode_png
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.runs import RunFolder
from fedscale.server.caption import run, sidecar
from fedscale.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = build(folder, arguments.shards, arguments.images)
        spawn = multiprocessing.get_context("spawn")
        jobs = [
            spawn.Process(target=work, args=(config, rank, arguments.workers, folder / f"rss-{rank}.txt"))
            for rank in range(arguments.workers)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
            assert job.exitcode == 0, job.exitcode
        rows = [report(rank, folder / f"rss-{rank}.txt", arguments) for rank in range(arguments.workers)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"worker {row['worker']}: {row['shards']} shards; {row['first_mb']:.1f} MB after its first, "
            f"{row['early_mb']:.1f} MB after a tenth, {row['late_mb']:.1f} MB at its last ({row['peak_mb']:.1f} MB at "
            f"most): last over tenth {row['ratio']:.3f}"
        )


def build(folder: Path, shards: int, images: int) -> Config:
    """A pool of small procedural images, and the config that captions it."""
    draws = np.random.default_rng(0)
    infos = []
    for number in range(shards):
        samples = [
            Sample(
                f"{number * images + i:09d}",
                encode_png(draws.integers(0, 256, (32, 32, 3), np.uint8)),
                "png",
                None,
                "cat",
            )
            for i in range(images)
        ]
        file = f"pool/{number:05d}.tar"
        done = write_shard(folder / "pool" / file, samples)
        infos.append(ShardInfo(file, done.samples, done.bytes, done.sha256, {}, done.members, done.index))
    Manifest(folder / "pool", "pool", ("cat", "dog"), "f" * 16, {"pool": tuple(infos)}, {}).save()
    config = Config(name="bench", out=str(folder / "runs"))
    data = dataclasses.replace(config.data, dir=str(folder / "pool"))
    return dataclasses.replace(config, data=data, caption=dataclasses.replace(config.caption, engine="template"))


def work(config: Config, rank: int, world: int, log: Path) -> None:
    """One worker, its memory noted at each shard that it publishes."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "bench"}
    publish = sidecar.publish

    def noting(*args: Any, **kwargs: Any) -> Any:
        marker = publish(*args, **kwargs)
        with open(log, "a") as file:
            file.write(f"{resident()}\n")
        return marker

    sidecar.publish = noting
    run(config, RunFolder.of(config), Session())


def resident() -> int:
    """Bytes of the resident set."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024


def report(rank: int, log: Path, arguments: argparse.Namespace) -> dict[str, float]:
    sizes = [int(line) for line in log.read_text().split()]
    points = {"first": sizes[0], "early": sizes[len(sizes) // 10 - 1], "late": sizes[-1], "peak": max(sizes)}
    megabytes = {f"{name}_mb": size / 1e6 for name, size in points.items()}
    return {"worker": rank, "shards": len(sizes), **megabytes, "ratio": points["late"] / points["early"]}


if __name__ == "__main__":
    main()
