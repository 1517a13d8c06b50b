"""Shards held against their manifest: bytes, counts, SHA-256, members, labels, keys."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.members import Contents, Survey, key_hash, samples, survey
from fedscale.data.parallel import mapped
from fedscale.data.shards import Sample, read_shard
from fedscale.data.tar import BrokenShard, walk
from fedscale.errors import UserError
from fedscale.progress import Reporter
from fedscale.storage import Unreadable, open_read


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a shard, by its name in the manifest; samples that it should hold and holds.

    `found` is None where the shard could not be read to its end.
    """

    shard: str
    reason: str
    expected: int = 0
    found: int | None = None


def verify_shards(
    folder: Path | str, reporter: Reporter, headers_only: bool = False, jobs: int | None = 1
) -> list[Fault]:
    """Everything that is wrong with the shards of a folder; [] = all is as its manifest says.

    `headers_only` leaves out what takes reading the members: SHA-256, labels, class counts; `jobs` shards at a time,
    None = as many as is best.
    Raises UserError where there is no manifest, or where a store refuses us.
    """
    manifest = Manifest.load(folder)
    faults: list[Fault] = []
    total = sum(manifest.num_samples(split) for split in manifest.splits)
    with reporter.task(f"verifying {manifest.name}", total, "samples") as task:
        for split, shards in manifest.splits.items():
            look = functools.partial(_headers if headers_only else _read, pool=split == "pool")
            urls = [manifest.url(shard) for shard in shards]
            keys: dict[str, array[int]] = {}
            for shard, held in zip(shards, mapped(look, urls, jobs, task), strict=True):
                task.advance(shard.samples)
                if isinstance(held, str):
                    faults.append(Fault(shard.file, held, shard.samples))
                else:
                    found = held.survey.samples
                    faults += [Fault(shard.file, r, shard.samples, found) for r in _differences(manifest, shard, held)]
                    keys[shard.file] = held.survey.keys
            faults += _shared_keys(manifest, split, keys)
    return faults + _unknown(manifest)


def checked_samples(manifest: Manifest, split: str) -> Iterator[Sample]:
    """All samples of a split in order, each shard held against the manifest when it has been read.

    Raises UserError where they differ: keep nothing that was made of the samples before the iterator is at its end.
    """
    seen: set[str] = set()
    for shard in manifest.shards(split):
        url = manifest.url(shard)
        reading = _Reading(split == "pool")
        for sample in reading.samples(url):
            if sample.key in seen:
                raise UserError(f"{url}: key {sample.key} appears twice in {split}; build the shards again")
            seen.add(sample.key)
            yield sample
        if reasons := _differences(manifest, shard, reading.held()):
            listed = "; ".join(reasons)
            raise UserError(f"{url}: differs from the manifest ({listed}); copy it again or build the shards again")


class _Held(NamedTuple):
    """What a shard turned out to hold; samples by keyword in the pool, else by label, None where that was not read."""

    survey: Survey
    words: Counter[str | int | None] | None


class _Reading:
    """One shard read from end to end: what goes by is hashed and counted."""

    def __init__(self, pool: bool) -> None:
        self._pool, self._words = pool, Counter[str | int | None]()
        self._contents, self._sha256, self._bytes = Contents(), hashlib.sha256(), 0

    def samples(self, url: str) -> Iterator[Sample]:
        for sample in read_shard(url, digest=self, contents=self._contents):
            self._words[(sample.keyword or "") if self._pool else sample.label] += 1
            yield sample

    def update(self, block: bytes) -> None:
        self._sha256.update(block)
        self._bytes += len(block)

    def held(self) -> _Held:
        seen = self._contents
        found = Survey(self._bytes, seen.samples, seen.members, seen.index, self._sha256.hexdigest(), seen.keys)
        return _Held(found, self._words)


def _read(url: str, pool: bool) -> _Held | str:
    """What a shard holds, or why it cannot be read."""
    reading = _Reading(pool)
    try:
        for _ in reading.samples(url):
            pass
    except BrokenShard as broken:
        return broken.reason
    except Unreadable as error:
        return str(error)
    return reading.held()


def _headers(url: str, pool: bool) -> _Held | str:
    found = survey(url)
    return found if isinstance(found, str) else _Held(found, None)


def _differences(manifest: Manifest, shard: ShardInfo, held: _Held) -> list[str]:
    """How a whole shard differs from what the manifest recorded; what it did not record is not compared."""
    found, words = held
    reasons = []
    if found.bytes != shard.bytes:
        reasons.append(f"{found.bytes:,} bytes, expected {shard.bytes:,}")
    if found.samples != shard.samples:
        reasons.append(f"{found.samples:,} samples, expected {shard.samples:,}")
    for extension in sorted({*shard.members, *found.members}) if shard.members else ():
        have, expected = found.members.get(extension, 0), shard.members.get(extension, 0)
        if have != expected:
            reasons.append(f"{have:,} members .{extension}, expected {expected:,}")
    if shard.index and found.index != shard.index:
        reasons.append(f"members of other names, sizes or places (index {found.index}, expected {shard.index})")
    if shard.sha256 and found.sha256 and found.sha256 != shard.sha256:
        reasons.append(f"SHA-256 {found.sha256[:12]}…, expected {shard.sha256[:12]}…")
    if words is not None and shard.histogram:
        named: Counter[str] = Counter()
        for word, number in words.items():
            if isinstance(word, str):
                named[word] += number
            elif word is not None and 0 <= word < len(manifest.class_names):
                named[manifest.class_names[word]] += number
            else:
                most = len(manifest.class_names) - 1
                reasons.append(f"label {word} on {number:,} samples, expected 0 to {most}")
        if named != shard.histogram:
            reasons.append(
                f"other numbers of images a {'keyword' if any(isinstance(word, str) for word in words) else 'class'}"
            )
    return reasons


def _shared_keys(manifest: Manifest, split: str, keys: dict[str, array[int]]) -> list[Fault]:
    """Keys that lie in two shards of a split. Hashes say where to look; the headers have the keys themselves."""
    if not keys:
        return []
    values, counts = np.unique(
        np.concatenate([np.asarray(held, np.int64) for held in keys.values()]), return_counts=True
    )
    if not (repeated := set(values[counts > 1].tolist())):
        return []
    first: dict[str, str] = {}  # key → the shard that holds it first
    faults = []
    for shard in manifest.splits[split]:
        if repeated.isdisjoint(keys.get(shard.file, ())):
            continue
        with open_read(manifest.url(shard)) as file:
            here = [sample.key for sample in samples(walk(file)) if key_hash(sample.key) in repeated]
        shared = [key for key in here if first.setdefault(key, shard.file) != shard.file]
        if shared:
            reason = f"{len(shared):,} keys that other shards hold too, e.g. {shared[0]} in {first[shared[0]]}"
            faults.append(Fault(shard.file, reason, shard.samples, len(keys[shard.file])))
    return faults


def _unknown(manifest: Manifest) -> list[Fault]:
    """Tars that lie among ours and that the manifest does not know; an imported folder may hold what it likes."""
    if manifest.base is not None:
        return []
    known = {shard.file for shards in manifest.splits.values() for shard in shards}
    lying = (path.relative_to(manifest.root).as_posix() for path in manifest.root.rglob("*.tar"))
    return [Fault(file, "not in the manifest") for file in sorted({*lying} - known)]
