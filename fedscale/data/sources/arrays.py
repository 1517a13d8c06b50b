"""Labelled images that lie in memory, as a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedscale.data.images import encode_png
from fedscale.data.sources.base import Original
from fedscale.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """Some images of a split, made PNG one at a time."""

    split: str
    positions: np.ndarray
    images: np.ndarray

    def __iter__(self) -> Iterator[Original]:
        for position, image in zip(self.positions.tolist(), self.images, strict=True):
            yield Original(f"{self.split}/{position}", encode_png(image))


class ArraySource:
    """`train` and `test` are pairs: uint8 images [N, H, W, 3] and labels [N], from 0 in the order of `class_names`."""

    in_order = False
    listed = None

    def __init__(
        self,
        class_names: Sequence[str],
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Raises UserError for images of another form, and for more or fewer labels than images."""
        self.class_names = tuple(class_names)
        self._splits: Mapping[str, tuple[np.ndarray, np.ndarray]] = {"train": train, "test": test}
        for split, (images, labels) in self._splits.items():
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
                raise UserError(
                    f"{split} images: {images.dtype} {list(images.shape)}, expected uint8 [N, height, width, 3]"
                )
            if len(images) != len(labels):
                raise UserError(f"{split}: {len(images)} images with {len(labels)} labels; expected one for each")

    def labels(self, split: str) -> np.ndarray:
        return np.asarray(self._splits[split][1], dtype=np.int64)

    def read(self, split: str, indices: np.ndarray) -> Encoded:
        return Encoded(split, indices, self._splits[split][0][indices])
