"""Batches: a step's pairs decoded and stacked, put together from several readers, cut into micro batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedscale.config.schema import Config
from fedscale.data.images import CorruptImage, decode, fit_square
from fedscale.errors import UserError
from fedscale.server.caption.features import view_of
from fedscale.server.pretrain.examples import Example
from fedscale.server.pretrain.kept import Kept
from fedscale.server.pretrain.text import Dialogue


@dataclass(frozen=True)
class Pair:
    """One image, still encoded, with its row, the kind of text and the stored view that it shows this epoch."""

    example: Example
    kind: str
    view: int


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, S, S, 3], what was asked and answered about each, each description or '', and (shard, key).

    With `pretrain.objective=keyword`, `labels` int64 [B] are the classes that the keywords name.
    Where the teacher's embeddings are stored, `seen` and `read` hold those of images and descriptions, float32 [B, D].
    With several stored views the images are augmented already (`augmented`), as the teacher saw them.
    """

    images: Tensor
    dialogues: list[Dialogue]
    descriptions: list[str]
    keys: list[tuple[str, str]]
    labels: Tensor | None = None
    seen: Tensor | None = None
    read: Tensor | None = None
    augmented: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    def picked(self, places: Sequence[int]) -> Batch:
        """The rows at these places, in their order."""
        columns: dict[str, Any] = {name: _picked(value, places) for name, value in _columns(self).items()}
        return dataclasses.replace(self, **columns)


def merged(parts: Sequence[tuple[list[int], Batch]]) -> tuple[list[int], Batch]:
    """What several readers made of one step, each with its positions, as one batch in the positions' order."""
    if len(parts) == 1:
        return parts[0]
    positions = np.concatenate([np.asarray(numbers, dtype=np.int64) for numbers, _ in parts])
    order = np.argsort(positions).tolist()
    columns = [_columns(batch) for _, batch in parts]
    joined: dict[str, Any] = {name: _joined([column[name] for column in columns]) for name in columns[0]}
    return positions[order].tolist(), dataclasses.replace(parts[0][1], **joined).picked(order)


def micro_batches(positions: list[int], batch: Batch, ends: Sequence[int]) -> list[Batch]:
    """The batch cut before these positions, the last of which is the step's end."""
    places = [0, *np.searchsorted(positions, ends).tolist()]
    if len(ends) == 1:
        return [batch]
    return [batch.picked(range(start, end)) for start, end in pairwise(places)]


class BatchMaker:
    """Decodes and stacks pairs, as `pretrain` wants its images.

    A large JPEG is decoded to 1/2, 1/4 or 1/8 of its sides, neither below twice `data.image_size`, so that the resizing
    still antialiases. Measured on three photographs, one core: to 64 pixels, 2.4 → 1.3 ms for 500 × 375 and 45 → 5 ms
    for 2000 × 1500; to 224, 3.5 ms as before and 50 → 14 ms. Pixels then differ by 0.2 to 1.7 of 255 in the mean (by
    2.8 to 4.4 at 32 pixels, were half as many enough). Not where the teacher's embeddings are stored: those are of the
    whole pixels.
    """

    def __init__(self, config: Config) -> None:
        stored = config.pretrain.teacher == "stored"
        self._size = config.data.image_size
        self._labelled = config.pretrain.objective == "keyword"
        self._at_least = 2 * self._size if config.pretrain.draft_decode and not stored else None
        self.views = config.caption.features.views if stored else 1
        self._augment, self._view_seed = config.pretrain.augment, config.caption.seed

    def batch(self, pairs: Sequence[Pair], kept: Kept) -> Batch:
        """One batch. Raises UserError for an image that does not decode, though it was captioned."""
        examples = [pair.example for pair in pairs]
        images = [torch.from_numpy(self._image(example, kept)) for example in examples]
        if self.views > 1:
            images = [
                view_of(image, pair.view, self._augment, self._view_seed, pair.example.row.key)
                for image, pair in zip(images, pairs, strict=True)
            ]
        return Batch(
            torch.stack(images),
            [pair.example.row.turns(pair.kind) for pair in pairs],
            [example.row.text("description") for example in examples],
            [(example.shard, example.sample.key) for example in examples],
            torch.tensor([example.label for example in examples]) if self._labelled else None,
            _stacked([pair.example.seen[pair.view] for pair in pairs if pair.example.seen is not None]),
            _stacked([example.read for example in examples if example.read is not None]),
            self.views > 1,
        )

    def _image(self, example: Example, kept: Kept) -> np.ndarray:
        place = example.shard, example.sample.key  # a foreign pool's shards may share keys
        if place in kept.images:
            return kept.images[place]
        try:
            image = np.array(fit_square(decode(example.sample.image, at_least=self._at_least), self._size))
        except CorruptImage as error:
            raise UserError(
                f"{example.shard}: image {place[1]}: {error}, yet it was captioned; caption again"
            ) from None
        if kept.takes(image.nbytes):
            kept.images[place] = image
        return image


def _columns(batch: Batch) -> dict[str, Any]:
    """The fields that have a row for each pair."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor | list)}


def _picked(column: Tensor | list[Any], places: Sequence[int]) -> Tensor | list[Any]:
    if isinstance(column, Tensor):
        return column[places.start : places.stop] if isinstance(places, range) else column[list(places)]
    return [column[place] for place in places]


def _joined(columns: list[Any]) -> Tensor | list[Any]:
    return torch.cat(columns) if isinstance(columns[0], Tensor) else [value for column in columns for value in column]


def _stacked(vectors: list[Tensor]) -> Tensor | None:
    return torch.stack(vectors).float() if vectors else None
