"""What a source of images offers to the builder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Original:
    """One image as the source holds it: encoded bytes, and the name by which an error speaks of it."""

    name: str
    image: bytes


class Source(Protocol):
    """Labelled images in two splits, `train` and `test` (which may be empty), addressed by position."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order; empty where the source does not name its classes."""

    @property
    def in_order(self) -> bool:
        """True where `read` takes ascending positions alone, because the format cannot be read at random."""

    @property
    def listed(self) -> np.ndarray | None:
        """Positions in `train` that a list file chose for the clients; None without a list."""

    def labels(self, split: str) -> np.ndarray:
        """int64 [N]: the label of each original, found without reading images."""

    def read(self, split: str, indices: np.ndarray) -> Iterable[Original]:
        """The originals at `indices`, in that order; iterating raises UserError where a file cannot be read.

        Unless `in_order`, the answer can be pickled and holds no more than its own rows: a worker process reads it.
        """
