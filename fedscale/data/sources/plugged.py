"""A source of another package: made by `(recipe)`, and held against what `Source` promises while it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedscale import plugins
from fedscale.config import RecipeConfig
from fedscale.config.data import FORMAT_GROUP, FORMAT_KEY, FORMATS
from fedscale.data.sources.base import Original
from fedscale.errors import UserError


def open_plugged(recipe: RecipeConfig) -> PluggedSource:
    """The source that `recipe.format` names outside fedscale; what its own code raises is passed on.

    Raises UserError where it cannot be imported, or lacks a part.
    """
    name = recipe.format
    make = plugins.load(plugins.target_of(name, FORMAT_KEY, FORMAT_GROUP, FORMATS), FORMAT_KEY)
    where = f"{FORMAT_KEY}={name}"
    source = plugins.called(make, where, recipe)
    for part in ("class_names", "labels", "read"):
        if not hasattr(source, part):
            raise UserError(f"{where}: made a {type(source).__name__} without {part}; see fedscale.data.sources.Source")
    return PluggedSource(source, where)


@dataclass(frozen=True)
class PluggedSource:
    """Another package's source. It may leave `in_order` and `listed` out, and its `read` may be a generator."""

    source: Any
    where: str

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(map(str, self.source.class_names))

    @property
    def in_order(self) -> bool:
        return getattr(self.source, "in_order", False)

    @property
    def listed(self) -> np.ndarray | None:
        return getattr(self.source, "listed", None)

    def labels(self, split: str) -> np.ndarray:
        found = np.asarray(self.source.labels(split))
        if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
            raise UserError(
                f"{self.where}: the {split} labels are {found.dtype} {list(found.shape)}, expected a whole number for "
                "each image"
            )
        return found.astype(np.int64)

    def read(self, split: str, indices: np.ndarray) -> Iterable[Original]:
        answer = self.source.read(split, indices)
        # A generator cannot go to a worker process; the source itself then does, and is asked there.
        return _Read(self.where, None if isinstance(answer, Iterator) else answer, self.source, split, indices)


@dataclass(frozen=True)
class _Read:
    """What a source answered, or will; checked one by one."""

    where: str
    answer: Iterable[Original] | None
    source: Any
    split: str
    indices: np.ndarray

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"source": None if self.answer is not None else self.source}

    def __iter__(self) -> Iterator[Original]:
        found = 0
        for original in self.answer if self.answer is not None else self.source.read(self.split, self.indices):
            if not isinstance(original, Original) or not isinstance(original.image, bytes):
                raise UserError(
                    f"{self.where}: `read` gave a {type(original).__name__}, expected fedscale.data.sources.Original "
                    "(name, encoded bytes)"
                )
            found += 1
            yield original
        if found != len(self.indices):
            raise UserError(f"{self.where}: `read` gave {found} of {len(self.indices)} {self.split} images asked for")
