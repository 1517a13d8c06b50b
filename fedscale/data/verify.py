"""Shards held against their manifest: bytes, counts, labels, keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedscale.data.manifest import Manifest
from fedscale.data.shards import Sample, file_sha256, read_shard
from fedscale.errors import UserError
from fedscale.progress import Reporter


def checked_samples(manifest: Manifest, split: str) -> Iterator[Sample]:
    """All samples of a split in order, each shard held against the manifest. Raises UserError where they differ."""
    seen: set[str] = set()
    for shard in manifest.shards(split):
        path = manifest.path(shard)
        if file_sha256(path) != shard.sha256:
            raise UserError(f"{path}: differs from the manifest (SHA-256); copy it again or build the shards again")
        histogram: Counter[str] = Counter()
        count = 0
        for sample in read_shard(path):
            if sample.key in seen:
                raise UserError(f"{path}: key {sample.key} appears twice in {split}; build the shards again")
            seen.add(sample.key)
            histogram[_class_of(sample, split, manifest.class_names, path)] += 1
            count += 1
            yield sample
        if count != shard.samples or dict(histogram) != shard.histogram:
            raise UserError(
                f"{path}: holds {count} samples, not the {shard.samples} of the manifest; build the shards again"
            )


def verify_shards(folder: Path | str, reporter: Reporter) -> Manifest:
    """Read every shard of a folder from end to end. Raises UserError for the first that is not as the manifest says."""
    manifest = Manifest.load(folder)
    total = sum(manifest.num_samples(split) for split in manifest.splits)
    with reporter.task(f"verifying {manifest.name}", total, "samples") as task:
        for split in manifest.splits:
            for _ in checked_samples(manifest, split):
                task.advance()
    return manifest


def _class_of(sample: Sample, split: str, class_names: tuple[str, ...], path: Path) -> str:
    """The word that the manifest counts a sample by: the keyword in the pool, else the class of its label."""
    if split == "pool":
        return sample.keyword or ""
    if sample.label is None or not 0 <= sample.label < len(class_names):
        expected = f"expected 0 to {len(class_names) - 1}"
        raise UserError(f"{path}: sample {sample.key} has label {sample.label}, {expected}; build the shards again")
    return class_names[sample.label]
