"""64-bit perceptual hashes (pHash) of shards' images, and the exact search for the nearest of them.

The hash keeps the signs of an image's low frequencies, half of them set, so that two hashes differ in an even number of
bits: few for a copy that was re-encoded, resized or slightly edited, 32 on average for unrelated images.
"""

from __future__ import annotations

from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

from fedscale.data.images import CorruptImage, decode, threaded
from fedscale.data.shards import Sample, read_shard
from fedscale.data.workers import Meter

SIDE = 128  # pixels, of which pHash makes 32: photographs are decoded no larger than needed
PAIRS = 2**17  # compared at once, so that the differences stay in the processor's cache


@dataclass(frozen=True)
class HashJob:
    """A shard to be hashed, and the hashes [M] among which each image's nearest is wanted."""

    url: str
    references: np.ndarray
    threads: int | None = None  # that decode, see `images.threaded`


@dataclass(frozen=True)
class Hashed:
    """One shard, row by row: keys [N], which images decoded (bool), hashes (uint64), and for each the nearest.

    `nearest` is a row of the job's references and `distance` the bits that differ; both mean nothing in the rows of
    images that did not decode, or without references.
    """

    keys: list[str]
    decoded: np.ndarray
    hashes: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray


def hash_shard(job: HashJob, meter: Meter) -> Hashed:
    """Hash all images of a shard that decode, and look for the nearest reference of each.

    Raises UserError for a shard that cannot be read.
    """
    keys, found = list[str](), list[int | None]()
    for sample, value in threaded(_hash_of, read_shard(job.url), job.threads):
        meter.advance()
        keys.append(sample.key)
        found.append(value)
    decoded = np.array([value is not None for value in found], dtype=bool)
    hashes = np.array([value or 0 for value in found], dtype=np.uint64)
    nearest, distance = search(hashes, job.references)
    return Hashed(keys, decoded, hashes, nearest, distance)


def phash(image: Image.Image) -> int:
    """The pHash of an image as 64 bits."""
    bits = imagehash.phash(image.convert("RGB")).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def search(hashes: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of uint64 [N] the nearest of uint64 [M] and its Hamming distance: int64 [N], uint8 [N]; exact.

    Among equally near ones the first. Without references all are at distance 64 from row 0.
    """
    nearest = np.zeros(len(hashes), dtype=np.int64)
    distance = np.full(len(hashes), 64, dtype=np.uint8)
    if len(references):
        rows = max(1, PAIRS // len(references))
        for start in range(0, len(hashes), rows):
            differing = np.bitwise_count(hashes[start : start + rows, None] ^ references)
            nearest[start : start + rows] = differing.argmin(axis=1)
            distance[start : start + rows] = differing.min(axis=1)
    return nearest, distance


def _hash_of(sample: Sample) -> int | None:
    try:
        return phash(decode(sample.image, at_least=SIDE))
    except CorruptImage:
        return None
