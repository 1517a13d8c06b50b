"""Exactly-once captioning under kill -9, with the real command and the real engine.

    python bench/caption_kill.py [--kills 20] [--images 480]

The demo's pool is captioned once undisturbed. Then again, by 1, 2 or 3 workers, which are killed at random moments and
started again in another number, until so many kills have hit. At the end every row file must be the same, byte for
byte, and every key there once. Prints a line a launch and the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLUSH = 16  # images: what a killed worker does again at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(*disturb(Path(folder), arguments))


def disturb(folder: Path, arguments: argparse.Namespace) -> tuple[Path, Path, int]:
    """Caption without and with kills; returns both caption folders and the number of kills."""
    dice = random.Random(arguments.seed)
    words = [
        "configs/demo.yaml",
        f"out={folder}",
        f"data.dir={folder / 'shards'}",
        "data.samples_per_shard=60",
        f"caption.max_images={arguments.images}",
        f"caption.flush_every={FLUSH}",
        "caption.batch_size=32",
        "caption.max_attempts=1000",
        "variant=full",
        "threads=1",
    ]
    one, many = ([*words, f"caption.dir={folder / name}"] for name in ("undisturbed", "disturbed"))
    began = time.perf_counter()
    (alone,) = launch([*one, "name=one"], 1, 0)
    assert alone.wait() == 0
    print(f"undisturbed: {time.perf_counter() - began:.1f} s")
    kills = number = 0
    while kills < arguments.kills:
        number += 1
        world = 1 + number % 3
        workers = launch([*many, "name=many"], world, number)
        working(folder / "disturbed", workers)
        time.sleep(dice.uniform(0, 4))
        hit = 0
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
                hit += 1
            worker.wait()
        kills += hit
        done, under_way = (
            len(list((folder / "disturbed").glob(pattern))) for pattern in ("*.done.json", "*.part.jsonl")
        )
        print(f"launch {number}: {world} workers, {hit} killed; {done} shards done, {under_way} under way", flush=True)
        if not hit:  # everything was done before the kill: take back some shards, rows and all
            for marker in dice.sample(sorted((folder / "disturbed").glob("[0-9]*.done.json")), 5):
                marker.unlink()
                marker.with_name(marker.name.replace(".done.json", ".jsonl")).unlink()
    for worker in launch([*many, "name=many"], 2, number + 1):
        assert worker.wait() == 0
    return folder / "undisturbed", folder / "disturbed", kills


def working(folder: Path, workers: list[subprocess.Popen[bytes]]) -> None:
    """Wait until a worker has begun a shard: a kill while Python still imports would prove nothing."""
    before = sizes(folder)
    while sizes(folder) == before and any(worker.poll() is None for worker in workers):
        time.sleep(0.05)


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.part.jsonl")}


def launch(words: list[str], world: int, number: int) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "fedscale", "caption", *words]
    shared = {**os.environ, "WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": f"launch-{number}"}
    return [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.DEVNULL) for rank in range(world)
    ]


def compare(undisturbed: Path, disturbed: Path, kills: int) -> None:
    names = sorted(path.name for path in undisturbed.glob("[0-9]*.jsonl"))
    assert names == sorted(path.name for path in disturbed.glob("[0-9]*.jsonl"))
    same, rows, keys = 0, 0, set()
    for name in names:
        same += (undisturbed / name).read_bytes() == (disturbed / name).read_bytes()
        found = [json.loads(line)["key"] for line in (disturbed / name).read_text().splitlines()]
        rows, keys = rows + len(found), keys | set(found)
    expected = sum(len((undisturbed / name).read_text().splitlines()) for name in names)
    print(
        f"{kills} kills: {expected - len(keys)} rows lost, {rows - len(keys)} doubled; "
        f"{same} of {len(names)} row files byte-identical"
    )
    if same < len(names) or rows != expected or len(keys) != rows:
        sys.exit(1)


if __name__ == "__main__":
    main()
