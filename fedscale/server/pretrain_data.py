"""The image-text pairs of pretraining: pool shards joined in step with their sidecar rows, in a recomputable order.

A stream of our own on `read_shard`, not a webdataset pipeline: that library cannot resume inside an epoch and hides
truncated shards (PITFALLS A 1, 9). Here the order is a function of (seed, epoch) alone, so resuming at any
step is skipping that many pairs, undecoded, and every pair is seen exactly once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedscale.config.schema import Config
from fedscale.data.images import CorruptImage, decode, fit_square
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, read_shard
from fedscale.errors import UserError
from fedscale.rng import derive, numpy_generator
from fedscale.runs import RunFolder
from fedscale.server.caption import sidecar
from fedscale.server.caption.sidecar import Row

BUFFER = 2048  # pairs, still encoded, that the shuffle draws from
KEPT_BYTES = 2**28  # of images, encoded and decoded, that stay in memory from one epoch to the next


@dataclass(frozen=True)
class Pair:
    """One image, still encoded, with its row and the kind of text that it shows this epoch."""

    sample: Sample
    row: Row
    kind: str


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, S, S, 3] without augmentation, each one's kind of text and text, and its description or ''."""

    images: Tensor
    kinds: list[str]
    texts: list[str]
    descriptions: list[str]


class PairStream:
    """The pairs of all captioned shards, epoch after epoch without end.

    `num_pairs` counts those of an epoch, `num_skipped` the rows left out because their status is not `ok`. Raises
    UserError when a shard is not captioned, or no row can be used.
    """

    def __init__(self, config: Config, manifest: Manifest, run: RunFolder) -> None:
        found = sidecar.captioned(config, manifest, run)
        self._shards = [shard for shard, _ in found]
        self._manifest, self._folder = manifest, sidecar.folder(config, run)
        self._kinds, self._seed, self._size = config.caption.kinds, config.seed, config.data.image_size
        self._kept: dict[str, list[tuple[Sample, Row]]] = {}
        self._decoded: dict[str, np.ndarray] = {}
        self._room = KEPT_BYTES
        self.num_pairs: int = sum(marker["n_ok"] for _, marker in found)
        self.num_skipped: int = sum(marker["n_in"] for _, marker in found) - self.num_pairs
        if not self.num_pairs:
            raise UserError(
                f"{self._folder}: none of {self.num_skipped} captioned images can be used ({_statuses(found)}); "
                f"truncated texts need a higher caption.max_new_tokens than {config.caption.max_new_tokens}"
            )

    def batches(self, start: int, size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches from step `start` on. Of the `size` pairs of a step this rank gets every `world`-th, from `rank`."""
        epoch, offset = divmod(start * size, self.num_pairs)
        endless = (pair for number in count(epoch) for pair in self._epoch(number))
        pairs = islice(endless, offset, None)
        while True:
            yield self._batch(list(islice(pairs, size))[rank::world])

    def _epoch(self, epoch: int) -> Iterator[Pair]:
        """All pairs once: shards in an order of (seed, epoch), then a shuffle through a buffer."""
        draws = numpy_generator(self._seed, "pretrain order", epoch)
        order = draws.permutation(len(self._shards))
        buffer: list[Pair] = []
        for pair in (pair for index in order for pair in self._shard(self._shards[index], epoch)):
            if len(buffer) < BUFFER:
                buffer.append(pair)
                continue
            slot = int(draws.integers(BUFFER))
            yield buffer[slot]
            buffer[slot] = pair
        yield from (buffer[slot] for slot in draws.permutation(len(buffer)))

    def _shard(self, shard: ShardInfo, epoch: int) -> Iterator[Pair]:
        for sample, row in self._joined(shard):
            kind = self._kinds[derive(self._seed, "kind", epoch, row.key) % len(self._kinds)]
            yield Pair(sample, row, kind)

    def _joined(self, shard: ShardInfo) -> Iterable[tuple[Sample, Row]]:
        """The shard's images with their rows, where these are `ok`; from memory if the shard still found room there."""
        if shard.file in self._kept:
            return self._kept[shard.file]
        if not self._takes(shard.bytes):
            return self._read(shard)
        self._kept[shard.file] = list(self._read(shard))
        return self._kept[shard.file]

    def _takes(self, size: int) -> bool:
        """Whether so many bytes more may be kept, which then count as kept."""
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def _read(self, shard: ShardInfo) -> Iterator[tuple[Sample, Row]]:
        path = self._manifest.path(shard)
        for sample, row in zip(read_shard(path), sidecar.read(self._folder, shard), strict=True):
            if sample.key != row.key:
                raise UserError(f"{path}: image {sample.key} has {row.key}'s captions; run `fedscale caption` again")
            if row.status == "ok":
                yield sample, row

    def _batch(self, pairs: list[Pair]) -> Batch:
        images = np.stack([self._image(pair.sample) for pair in pairs])
        return Batch(
            torch.from_numpy(images),
            [pair.kind for pair in pairs],
            [pair.row.texts[pair.kind] for pair in pairs],
            [pair.row.texts.get("description", "") for pair in pairs],
        )

    def _image(self, sample: Sample) -> np.ndarray:
        if sample.key in self._decoded:
            return self._decoded[sample.key]
        try:
            image = fit_square(decode(sample.image), self._size)
        except CorruptImage as error:
            raise UserError(f"pool image {sample.key}: {error}, yet it was captioned; build the shards again") from None
        if self._takes(image.nbytes):
            self._decoded[sample.key] = image
        return image


def _statuses(found: list[tuple[ShardInfo, dict[str, Any]]]) -> str:
    totals = {status: sum(marker["statuses"][status] for _, marker in found) for status in sidecar.STATUSES}
    return ", ".join(f"{number} {status}" for status, number in totals.items() if number)
