"""The search behind `near_duplicates`: a pool's images held against test images, shard by shard, by two criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.perceptual_hash import Hashed, HashJob, hash_shard
from fedscale.data.workers import in_processes, processes, threads_each
from fedscale.errors import UserError
from fedscale.progress import Reporter

ROWS = 1024  # of embeddings compared at once


@dataclass(frozen=True)
class Embeddings:
    """The second criterion: images whose embeddings have a cosine similarity of `similarity` or more.

    `stored` gives a pool shard's embeddings [samples, D] in shard order, zeros for an image without, or None for a
    shard without any; `references` [M, D] are those of the test images, in the order of their shards.
    """

    stored: Callable[[ShardInfo], np.ndarray | None]
    references: np.ndarray
    similarity: float


@dataclass(frozen=True)
class Tested:
    """The test images: all keys, in the order of their shards, and of those that decode the hashes and the rows."""

    keys: list[str]
    hashes: np.ndarray  # uint64 [M]
    rows: np.ndarray  # int64 [M]

    @classmethod
    def of(cls, manifest: Manifest, split: str, reporter: Reporter, jobs: int | None) -> Tested:
        """Hash a split. Raises UserError where none of its images decodes."""
        held = [hashed for _, hashed in _hashed(manifest, split, np.empty(0, np.uint64), reporter, jobs)]
        rows = np.flatnonzero(np.concatenate([hashed.decoded for hashed in held]))
        if not len(rows):
            raise UserError(f"{manifest.root}: no {split} image decodes; expected at least 1: copy the shards again")
        hashes = np.concatenate([hashed.hashes for hashed in held])
        return cls([key for hashed in held for key in hashed.keys], hashes[rows], rows)


def find(
    pool: Manifest, tested: Tested, distance: int, embeddings: Embeddings | None, reporter: Reporter, jobs: int | None
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(a row {shard, key, of, distance or similarity} for each near-duplicate, the counts for the manifest).

    A row names the nearest test image, by the hash where both criteria are met.
    """
    rows: list[dict[str, Any]] = []
    counts = {"scanned": 0, "corrupt": 0, "without_embeddings": 0}
    for shard, hashed in _hashed(pool, "pool", tested.hashes, reporter, jobs):
        found: dict[int, tuple[int, dict[str, float]]] = {}
        if embeddings is not None:
            stored = embeddings.stored(shard)
            counts["without_embeddings"] += stored is None
            if stored is not None:
                of, similarity = most_similar(stored, embeddings.references, shard)
                for row in np.flatnonzero(hashed.decoded & (similarity >= embeddings.similarity)).tolist():
                    found[row] = int(of[row]), {"similarity": round(float(similarity[row]), 4)}
        for row in np.flatnonzero(hashed.decoded & (hashed.distance <= distance)).tolist():
            found[row] = int(tested.rows[hashed.nearest[row]]), {"distance": int(hashed.distance[row])}
        for row, (of_row, how) in sorted(found.items()):
            rows.append({"shard": shard.file, "key": hashed.keys[row], "of": tested.keys[of_row], **how})
        counts["scanned"] += int(hashed.decoded.sum())
        counts["corrupt"] += int((~hashed.decoded).sum())
    return rows, {"count": len(rows), **counts}


def most_similar(stored: np.ndarray, references: np.ndarray, shard: ShardInfo) -> tuple[np.ndarray, np.ndarray]:
    """For each of [N, D] the row of [M, D] with the highest cosine similarity, and that: int64 [N], float32 [N].

    Raises UserError where the embeddings are not one a sample, or of another width.
    """
    if stored.shape != (shard.samples, references.shape[1]):
        expected = f"expected {[shard.samples, references.shape[1]]}"
        raise UserError(
            f"{shard.file}: embeddings of shape {list(stored.shape)}, {expected}; embed the pool and the test images "
            "with the same teacher"
        )
    wanted = _unit(references).T
    of, similarity = np.zeros(len(stored), np.int64), np.zeros(len(stored), np.float32)
    for start in range(0, len(stored), ROWS):
        cosines = _unit(stored[start : start + ROWS]) @ wanted
        of[start : start + ROWS], similarity[start : start + ROWS] = cosines.argmax(axis=1), cosines.max(axis=1)
    return of, similarity


def _unit(rows: np.ndarray) -> np.ndarray:
    """float32 rows of length 1; a row of zeros stays so, and is similar to nothing."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _hashed(
    manifest: Manifest, split: str, references: np.ndarray, reporter: Reporter, jobs: int | None
) -> Iterator[tuple[ShardInfo, Hashed]]:
    """Every shard of a split with its hashes, and the nearest of `references` to each."""
    shards, images = manifest.shards(split), manifest.num_samples(split)
    jobs = processes(jobs, len(shards), images)
    work = (HashJob(manifest.url(shard), references, threads_each(jobs)) for shard in shards)
    with (
        reporter.task(f"hashing {manifest.name}/{split}", images, "images") as task,
        closing(in_processes(hash_shard, work, jobs, task)) as results,
    ):
        yield from zip(shards, results, strict=True)
