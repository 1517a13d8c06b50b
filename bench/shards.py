"""How fast shards are walked and read, beside webdataset, in one run: `python bench/shards.py`.

Shards as img2dataset makes them (jpg, json, txt) are generated into a temporary folder and read once, so that the page
cache is warm for all. Each reader then takes its turn `--rounds` times, and its best round counts. webdataset reads and
groups, without decoding; it notices few damages, ours all that a header can tell. Prints samples/s and the ratio.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from rich.console import Console
from rich.table import Table

from fedscale.data.members import samples, survey
from fedscale.data.shards import read_shard
from fedscale.data.tar import walk

MEMBERS = 3  # a sample: .jpg, .json, .txt
CASES = ((4, 5000, 3_000), (1, 5000, 30_000))  # shards, samples a shard, mean bytes of an image
REFERENCE = "webdataset: tar_file_iterator, group_by_keys"


def generate(folder: Path, shards: int, count: int, image: int) -> list[Path]:
    """Shards of images whose sizes vary by half around the mean."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    paths = []
    for shard in range(shards):
        paths.append(folder / f"{shard:05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(count):
                key = f"{shard:05d}{number:04d}"
                told = {"caption": f"a photo of number {number}", "url": f"https://example.org/{key}.jpg", "key": key}
                size = int(draws.integers(image // 2, image * 3 // 2))
                contents = {"jpg": draws.bytes(size), "json": json.dumps(told).encode(), "txt": b"a photo of a number"}
                for extension, data in contents.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return paths


def number_of(items: Iterable[Any]) -> int:
    return sum(1 for _ in items)


def walked(path: Path) -> int:
    with open(path, "rb") as file:
        return number_of(walk(file)) // MEMBERS


def grouped(path: Path) -> int:
    with open(path, "rb") as file:
        return number_of(samples(walk(file)))


def surveyed(path: Path, hashed: bool = False) -> int:
    found = survey(str(path), hashed)
    assert not isinstance(found, str), found
    return found.samples


def by_iterator(path: Path) -> int:
    return number_of(webdataset.tariterators.tarfile_to_samples()(iter([{"url": str(path)}])))


def by_webdataset(path: Path) -> int:
    return number_of(webdataset.WebDataset(str(path), shardshuffle=False, nodesplitter=None))


READERS: dict[str, Callable[[Path], int]] = {
    REFERENCE: by_iterator,
    "webdataset: WebDataset": by_webdataset,
    "walk: headers, checksums": walked,
    "walk + samples: grouped, complete": grouped,
    "survey: what an import records": surveyed,
    "survey, hashed: every byte": lambda path: surveyed(path, hashed=True),
    "read_shard: parsed samples": lambda path: number_of(read_shard(path)),
    "read_shard with SHA-256": lambda path: number_of(read_shard(path, digest=hashlib.sha256())),
}


def measured(paths: list[Path], expected: int, rounds: int) -> dict[str, float]:
    """Samples/s of each reader in its best round."""
    best: dict[str, float] = dict.fromkeys(READERS, 0.0)
    for path in paths:
        path.read_bytes()  # into the page cache
    for _ in range(rounds):
        for name, reader in READERS.items():
            start = time.perf_counter()
            found = sum(map(reader, paths))
            assert found == expected, f"{name}: {found} samples, expected {expected}"
            best[name] = max(best[name], expected / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each reader; the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (shards, count, image) in enumerate(CASES):
            paths = generate(Path(folder) / str(number), shards, count, image)
            rates = measured(paths, shards * count, options.rounds)
            case = {"shards": shards, "samples_per_shard": count, "image_bytes": image}
            results.append({**case, "samples_per_second": rates})
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        rates = result["samples_per_second"]
        title = "{shards} shards × {samples_per_shard:,} samples, images of {image_bytes:,} bytes".format(**result)
        table = Table("reader", "samples/s", "× webdataset", title=title, box=None)
        for name, rate in rates.items():
            table.add_row(name, f"{rate:,.0f}", f"{rate / rates[REFERENCE]:.1f}")
        Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
