"""One shard of a build: its originals read, verified by decoding, written. This is what a worker process runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fedscale.data.images import CorruptImage, decode, encode_png, threaded
from fedscale.data.manifest import ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.data.sources.base import Original
from fedscale.data.workers import Meter
from fedscale.errors import UserError


@dataclass(frozen=True)
class CorruptLimit:
    """How many images of a build may be undecodable: a share of all, and the source that an error names."""

    images: int
    share: float
    source: str | None

    def check(self, corrupt: int, name: str, reason: str) -> None:
        """Raises UserError where `corrupt`, the images left out so far, are too many; the last of them is named."""
        if corrupt > self.images:
            raise UserError(
                f"source={self.source}: more than {self.images} images cannot be decoded, the limit of "
                f"max_corrupt={self.share} (the last: {name}, {reason}); copy it again or raise the limit"
            )


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written to `folder/file`. It crosses to a worker, and so holds no image and its own rows alone."""

    folder: Path
    file: str
    split: str
    first: int  # of its samples' numbers in the split, which are their keys
    originals: Iterable[Original]
    labels: np.ndarray  # int64 [samples]
    class_names: tuple[str, ...]
    limit: CorruptLimit
    threads: int | None = None  # that decode, see `images.threaded`


@dataclass(frozen=True)
class BuiltShard:
    """What became of a job: the manifest's entries."""

    split: str
    info: ShardInfo
    excluded: list[dict[str, str]] = field(default_factory=list)  # corrupt originals: name, reason


def build_shard(job: ShardJob, meter: Meter) -> BuiltShard:
    """Write one shard. Images that do not decode are left out and named.

    Raises UserError for a source that cannot be read, and above the limit of corrupt images over all shards.
    """
    histogram: Counter[str] = Counter()
    excluded: list[dict[str, str]] = []
    written = write_shard(job.folder / job.file, _samples(job, meter, histogram, excluded))
    return BuiltShard(job.split, ShardInfo(job.file, **asdict(written), histogram=dict(histogram)), excluded)


def _samples(job: ShardJob, meter: Meter, histogram: Counter[str], excluded: list[dict[str, str]]) -> Iterator[Sample]:
    """The shard's samples; a corrupt original leaves a gap in the numbering, so that no other key depends on it."""
    verified = threaded(_verified, job.originals, job.threads)
    for number, (label, (original, (suffix, image))) in enumerate(zip(job.labels.tolist(), verified, strict=True)):
        meter.advance()
        if not suffix:
            reason = image.decode()
            excluded.append({"name": original.name, "reason": reason})
            job.limit.check(meter.fail(), original.name, reason)
            continue
        word = job.class_names[label]
        histogram[word] += 1
        open_web = job.split == "pool"  # there, the crawl's search word is all that the server may know
        yield Sample(
            key=f"{job.first + number:08d}",
            image=image,
            suffix=suffix,
            label=None if open_web else label,
            keyword=word if open_web else None,
            source=original.name,
        )


def _verified(original: Original) -> tuple[str, bytes]:
    """(suffix, bytes) of an image that decodes, other formats made PNG; ("", reason) of one that does not."""
    try:
        image = decode(original.image)
    except CorruptImage as error:
        return "", str(error).encode()
    if image.format in ("JPEG", "PNG"):
        return ("jpg" if image.format == "JPEG" else "png"), original.image
    return "png", encode_png(image)
