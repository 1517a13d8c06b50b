"""A world of three colours for stage 3: its shards, captioned, and a federated model."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fedscale.config.schema import Config
from fedscale.data.images import encode_png
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.runs import RunFolder
from fedscale.server.align.draw import Pool, Teacher, draw
from fedscale.session import Session

COLOURS = ("red", "green", "dark_blue")
SIZE = 16


def picture(colour: int, number: int) -> bytes:
    """A noisy square of one colour."""
    pixels = np.random.default_rng([colour, number]).integers(0, 120, (SIZE, SIZE, 3))
    pixels[..., colour] += 100
    return encode_png(pixels.astype(np.uint8))


def colour_teacher(images: torch.Tensor) -> torch.Tensor:
    """Logits by the mean of each channel: right about every picture."""
    return images.float().mean(dim=(1, 2)) / 10


def shard(root: Path, file: str, samples: list[Sample]) -> ShardInfo:
    histogram = Counter(COLOURS[s.label] if s.label is not None else str(s.keyword) for s in samples)
    written = write_shard(root / file, samples)
    return ShardInfo(file, written.samples, written.bytes, written.sha256, dict(histogram))


def make_data(root: Path, pool: list[tuple[int, str, bytes | None]]) -> Manifest:
    """Train and test of every colour; a pool of (colour, keyword, bytes instead of the picture) in two shards."""
    number = iter(range(10_000))

    def labelled(per_class: int) -> list[Sample]:
        return [
            Sample(f"{(n := next(number)):08d}", picture(colour, n), "png", label=colour)
            for _ in range(per_class)
            for colour in range(3)
        ]

    def wild(part: list[tuple[int, str, bytes | None]]) -> list[Sample]:
        return [
            Sample(f"{(n := next(number)):08d}", image or picture(colour, n), "png", keyword=keyword)
            for colour, keyword, image in part
        ]

    half = len(pool) // 2
    splits = {
        "train": (shard(root, "train/00000.tar", labelled(4)),),
        "test": (shard(root, "test/00000.tar", labelled(6)),),
        "pool": (shard(root, "pool/00000.tar", wild(pool[:half])), shard(root, "pool/00001.tar", wild(pool[half:]))),
    }
    manifest = Manifest(root, "colours", COLOURS, "c" * 16, splits, {})
    manifest.save()
    return manifest


# 12 of each colour; the keyword of every fourth is wrong, of some no class at all, and it may be spelt otherwise.
POOL: list[tuple[int, str, bytes | None]] = [
    (colour, ("Dark Blue" if colour == 2 else COLOURS[colour]) if n % 4 else COLOURS[(colour + 1) % 3], None)
    for n in range(12)
    for colour in range(3)
] + [(0, "sunset", None), (1, "meadow", None)]


@dataclasses.dataclass
class World:
    """A run folder with its pool captioned and a federated model in it."""

    config: Config
    manifest: Manifest
    run: RunFolder

    def with_align(self, **settings) -> Config:
        return dataclasses.replace(self.config, align=dataclasses.replace(self.config.align, **settings))

    def drawn(
        self, session: Session | None = None, seed: int | None = None, teacher: Teacher = colour_teacher, **settings
    ):
        config = self.with_align(**settings)
        config = dataclasses.replace(config, seed=config.seed if seed is None else seed)
        pool = Pool(config, self.manifest, self.run, COLOURS)
        return draw(config, pool, COLOURS, teacher, session or Session())
