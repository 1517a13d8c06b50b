"""The image-text pairs of pretraining: pool shards joined in step with their sidecar rows, in a recomputable order.

A webdataset pipeline whose stages are ours: the library's own tar expander hides truncated shards, and its shuffles
cannot be resumed inside an epoch (PITFALLS A 1, 9). Here the order is a function of (seed, epoch) alone, so resuming at
any step is skipping that many pairs, undecoded, and every pair is seen exactly once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor
from webdataset import DataPipeline

from fedscale.config.schema import Config
from fedscale.data.images import CorruptImage, decode, fit_square
from fedscale.data.manifest import Manifest
from fedscale.data.near_duplicates import left_out
from fedscale.data.shards import Sample
from fedscale.errors import UserError
from fedscale.rng import derive, numpy_generator
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, sidecar
from fedscale.server.caption.features import FeatureStore, view_of
from fedscale.server.caption.join import joined
from fedscale.server.caption.ledger import Entry
from fedscale.server.caption.rows import STATUSES, Row
from fedscale.server.pretrain.text import Dialogue

BUFFER = 2048  # pairs, still encoded, that the shuffle draws from
KEPT_BYTES = 2**28  # of images, encoded and decoded, that stay in memory from one epoch to the next


@dataclass(frozen=True)
class Example:
    """One captioned image of a shard. `seen` [views, D] and `read` [D] are the teacher's stored embeddings, if any."""

    shard: str
    sample: Sample
    row: Row
    seen: Tensor | None = None
    read: Tensor | None = None


@dataclass(frozen=True)
class Pair:
    """One image, still encoded, with its row, the kind of text and the stored view that it shows this epoch."""

    example: Example
    kind: str
    view: int


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, S, S, 3], what was asked and answered about each, and each description or ''.

    Where the teacher's embeddings are stored, `seen` and `read` hold those of images and descriptions, float32 [B, D].
    With several stored views the images are augmented already (`augmented`), as the teacher saw them.
    """

    images: Tensor
    dialogues: list[Dialogue]
    descriptions: list[str]
    seen: Tensor | None = None
    read: Tensor | None = None
    augmented: bool = False


class PairStream:
    """The pairs of all captioned shards, epoch after epoch without end.

    `num_pairs` counts those of an epoch, `num_skipped` the rows left out, `skipped` says why in words. Raises
    UserError when a shard is not captioned, no row can be used, or `pretrain.teacher=stored` finds no embeddings.
    """

    def __init__(self, config: Config, manifest: Manifest, run: RunFolder) -> None:
        self._captions = ledger.captioned(config, manifest, run)
        self._entries = list(self._captions)
        self._manifest, self._left_out = manifest, left_out(manifest)
        self._kinds, self._seed, self._size = config.caption.kinds, config.seed, config.data.image_size
        stored = config.pretrain.teacher == "stored"
        self._features = FeatureStore(config, self._captions.where) if stored else None
        self._views = config.caption.features.views if stored else 1
        self._augment, self._view_seed = config.pretrain.augment, config.caption.seed
        self._kept: dict[str, list[Example]] = {}
        self._decoded: dict[
            tuple[str, str], np.ndarray
        ] = {}  # by shard and key: a foreign pool's shards may share keys
        self._room = KEPT_BYTES
        self.num_pairs: int = sum(map(self._usable, self._entries))
        self.num_skipped: int = self._captions.total("n_in") - self.num_pairs
        self.skipped = _statuses(self._entries, self.num_pairs)
        if not self.num_pairs:
            raise UserError(
                f"{self._captions.where.url}: none of {self.num_skipped} images can be used ({self.skipped}); "
                f"truncated texts need a higher caption.max_new_tokens than {config.caption.max_new_tokens}"
            )

    def embed_dim(self) -> int:
        """D of the stored embeddings. Raises UserError where there are none."""
        assert self._features is not None, "asked only where the teacher is stored"
        return self._features.read(self._entries[0]).embeddings.shape[-1]

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
        shards = [self._entries[index] for index in draws.permutation(len(self._entries))]
        return iter(
            DataPipeline(partial(iter, shards), self._expanded, partial(self._dealt, epoch), partial(_shuffled, draws))
        )

    def _expanded(self, shards: Iterator[Entry]) -> Iterator[Example]:
        for entry in shards:
            yield from self._joined(entry)

    def _dealt(self, epoch: int, examples: Iterator[Example]) -> Iterator[Pair]:
        """Each image with the kind of text, and the stored view, that it shows this epoch."""
        for example in examples:
            key = example.row.key
            kind = self._kinds[derive(self._seed, "kind", epoch, key) % len(self._kinds)]
            yield Pair(example, kind, derive(self._seed, "view", epoch, key) % self._views)

    def _joined(self, entry: Entry) -> Iterable[Example]:
        """The shard's images with their rows, where these are `ok`; from memory if the shard still found room there."""
        file = entry.shard.file
        if file in self._kept:
            return self._kept[file]
        if not self._takes(entry.shard.bytes):
            return self._read(entry)
        self._kept[file] = list(self._read(entry))
        return self._kept[file]

    def _usable(self, entry: Entry) -> int:
        """How many rows are `ok` and of no near-duplicate, which may have been found after captioning."""
        left_out = self._left_out.get(entry.shard.file)
        if not left_out:
            return entry.marker["n_ok"]
        rows = sidecar.read(self._captions.where, entry.shard, entry.marker)
        return sum(row.status == "ok" and row.key not in left_out for row in rows)

    def _takes(self, size: int) -> bool:
        """Whether so many bytes more may be kept, which then count as kept."""
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def _read(self, entry: Entry) -> Iterator[Example]:
        file, left_out = entry.shard.file, self._left_out.get(entry.shard.file, frozenset())
        stored = self._features.read(entry) if self._features else None
        for index, (sample, row) in enumerate(joined(self._captions, self._manifest, entry)):
            if row.status != "ok" or row.key in left_out:
                continue
            if stored is None:
                yield Example(file, sample, row)
            else:
                yield Example(file, sample, row, stored.embeddings[index], stored.descriptions[index])

    def _batch(self, pairs: list[Pair]) -> Batch:
        examples = [pair.example for pair in pairs]
        images = [torch.from_numpy(self._image(example)) for example in examples]
        if self._views > 1:
            images = [
                view_of(image, pair.view, self._augment, self._view_seed, pair.example.row.key)
                for image, pair in zip(images, pairs, strict=True)
            ]
        return Batch(
            torch.stack(images),
            [pair.example.row.turns(pair.kind) for pair in pairs],
            [example.row.text("description") for example in examples],
            _stacked([pair.example.seen[pair.view] for pair in pairs if pair.example.seen is not None]),
            _stacked([example.read for example in examples if example.read is not None]),
            self._views > 1,
        )

    def _image(self, example: Example) -> np.ndarray:
        place = example.shard, example.sample.key
        if place in self._decoded:
            return self._decoded[place]
        try:
            image = np.array(fit_square(decode(example.sample.image), self._size))
        except CorruptImage as error:
            raise UserError(
                f"{example.shard}: image {place[1]}: {error}, yet it was captioned; caption again"
            ) from None
        if self._takes(image.nbytes):
            self._decoded[place] = image
        return image


def _shuffled(draws: np.random.Generator, pairs: Iterator[Pair]) -> Iterator[Pair]:
    """The pairs through a buffer of BUFFER, from which `draws` picks the next."""
    buffer: list[Pair] = []
    for pair in pairs:
        if len(buffer) < BUFFER:
            buffer.append(pair)
            continue
        slot = int(draws.integers(BUFFER))
        yield buffer[slot]
        buffer[slot] = pair
    yield from (buffer[slot] for slot in draws.permutation(len(buffer)))


def _stacked(vectors: list[Tensor]) -> Tensor | None:
    return torch.stack(vectors).float() if vectors else None


def _statuses(entries: list[Entry], num_pairs: int) -> str:
    """How many rows are left out, by status; near-duplicates found after captioning are among the `ok` ones."""
    totals = {status: sum(entry.marker["statuses"].get(status, 0) for entry in entries) for status in STATUSES}
    totals["near_duplicate"] += totals.pop("ok") - num_pairs
    return ", ".join(f"{number} {status}" for status, number in totals.items() if number)
