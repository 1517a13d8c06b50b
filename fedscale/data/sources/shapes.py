"""The procedural set `shapes`: nothing to download, every image a function of (seed, split, class, number)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedscale import rng
from fedscale.config.schema import ShapesConfig
from fedscale.data import shapes
from fedscale.data.images import encode_png
from fedscale.data.sources.base import Original


@dataclass(frozen=True)
class Drawn:
    """Images `positions` of a split, drawn one at a time."""

    seed: int
    split: str
    per_class: int
    positions: np.ndarray

    def __iter__(self) -> Iterator[Original]:
        for position in self.positions.tolist():
            label, number = divmod(position, self.per_class)
            image = shapes.render(self.seed, label, number).image
            yield Original(f"{self.split}/{shapes.CLASSES[label]}/{number}", encode_png(image))


class ShapesSource:
    """`train_per_class` and `test_per_class` images of each of the ten classes, as PNG."""

    in_order = False
    listed = None

    def __init__(self, config: ShapesConfig, seed: int) -> None:
        self._per_class = {"train": config.train_per_class, "test": config.test_per_class}
        self._seed = seed
        self.class_names = tuple(shapes.CLASSES)

    def labels(self, split: str) -> np.ndarray:
        return np.repeat(np.arange(len(self.class_names), dtype=np.int64), self._per_class[split])

    def read(self, split: str, indices: np.ndarray) -> Drawn:
        return Drawn(rng.derive(self._seed, "shapes", split), split, self._per_class[split], indices)
