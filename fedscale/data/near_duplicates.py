"""Near-duplicates of test images in a pool: found, written down beside the pool's manifest, and left out by readers.

A pool that was crawled may hold the very images that models are judged by. Two criteria, either of which is enough: the
perceptual hash (`perceptual_hash`), and, where a teacher's embeddings of the pool are stored, their cosine similarity.
The hash finds what was re-encoded, resized or recoloured, the embeddings also what was cropped or mirrored.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

from fedscale import files
from fedscale.data.manifest import Manifest
from fedscale.data.near_search import Embeddings, Tested, find
from fedscale.data.stopping import stopped_by_signals
from fedscale.errors import UserError
from fedscale.progress import Reporter

FILE = "near_duplicates.jsonl"
# Bits of the hash. Of 37,835 pool images of CIFAR-10, 74 are within 4 bits of a test image (by eye all copies, or shots
# of one series), 139 within 6 (one in ten is another motif with the same outline), 283 within 8 (one in three is).
DISTANCE = 6


def mark_near_duplicates(
    pool: Manifest,
    against: Manifest,
    reporter: Reporter,
    split: str = "test",
    distance: int = DISTANCE,
    jobs: int | None = 1,
    embeddings: Embeddings | None = None,
) -> Manifest:
    """Find the pool's images that are near-duplicates of a split of `against`; returns the pool's manifest with counts.

    Two images are near where `distance` bits of 64 or fewer differ. Writes `near_duplicates.jsonl` beside the pool's
    manifest, a row {shard, key, of, distance or similarity} for each, then the manifest; both stand until the settings
    or the shards change, and are then replaced. Images that do not decode are skipped. `jobs` and memory are as in
    `build_shards`, with 8 bytes for each test image and the found rows.

    Raises UserError for shards that cannot be read and embeddings that do not fit, Stopped after SIGINT or SIGTERM.
    """
    if not 0 <= distance <= 64:
        raise UserError(f"distance={distance}: expected 0 to 64 bits of the hash; give about {DISTANCE}")
    what = f"near-duplicates of {against.name}/{split}"
    settings = _settings(pool, against, split, distance, embeddings)
    if _is_done(pool, settings):
        reporter.say(f"{what}: found already, {_told(pool)}")
        return pool
    with stopped_by_signals(f"the search for {what}:"):
        tested = Tested.of(against, split, reporter, jobs)
        rows, counts = find(pool, tested, distance, embeddings, reporter, jobs)
        files.write_jsonl(pool.root / FILE, rows)
        marked = dataclasses.replace(pool, near_duplicates=settings | counts)
        marked.save()
    if counts["without_embeddings"]:
        bare = f"{counts['without_embeddings']} shards have no embeddings"
        reporter.say(f"{what}: {bare}; only their hashes were compared, the same command compares the rest later")
    reporter.say(f"{what}: {_told(marked)}")
    return marked


def left_out(manifest: Manifest) -> dict[str, frozenset[str]]:
    """The keys that readers leave out, by shard file; empty where none were looked for or found.

    Raises UserError where the list is not the one that the manifest counts.
    """
    if not manifest.near_duplicates:  # a list that lies there is of an earlier manifest
        return {}
    path = manifest.root / FILE
    rows = files.read_jsonl(path)
    expected = manifest.near_duplicates["count"]
    if len(rows) != expected:
        raise UserError(
            f"{path}: {len(rows)} rows, expected the manifest's {expected}; run `fedscale shards near-duplicates` again"
        )
    found = defaultdict(set)
    for row in rows:
        found[row["shard"]].add(row["key"])
    return {shard: frozenset(keys) for shard, keys in found.items()}


def _told(pool: Manifest) -> str:
    found = pool.near_duplicates
    return f"{found['count']:,} of {found['scanned']:,} pool images, left out and named in {pool.root / FILE}"


def _settings(
    pool: Manifest, against: Manifest, split: str, distance: int, embeddings: Embeddings | None
) -> dict[str, Any]:
    """What determines the result, as the manifest keeps it."""
    threshold: dict[str, float] = {"distance": distance}
    if embeddings is not None:
        if len(embeddings.references) != against.num_samples(split):
            raise UserError(
                f"{against.root}: {len(embeddings.references)} embeddings of {against.num_samples(split)} {split} "
                "images; expected one each: embed them again"
            )
        threshold["similarity"] = embeddings.similarity
    shards = (*pool.shards("pool"), *against.shards(split))
    return {
        "of": f"{against.name}/{split}",
        "method": "phash64" if embeddings is None else "phash64 or embeddings",
        "threshold": threshold,
        "shards": files.fingerprint([[s.file, s.samples, s.bytes, s.sha256, s.index] for s in shards]),
    }


def _is_done(pool: Manifest, settings: dict[str, Any]) -> bool:
    """Whether the pool's list is of these settings; one that lacked some embeddings can only become better."""
    found = pool.near_duplicates
    same = all(found.get(key) == value for key, value in settings.items())
    return same and not found["without_embeddings"] and (pool.root / FILE).exists()
