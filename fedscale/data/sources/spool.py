"""Random access to a source that can only be read in order: its wanted images are copied once into one flat file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fedscale.data.sources.base import Original


class Spool:
    """The originals at ascending `indices`, kept in `path` (encoded bytes, end to end) until the shards are written."""

    def __init__(self, path: Path, indices: np.ndarray, originals: Iterable[Original]) -> None:
        self._path, self._indices = path, indices
        self._names: list[str] = []
        ends = [0]
        with open(path, "wb") as file:
            for original in originals:
                file.write(original.image)
                ends.append(ends[-1] + len(original.image))
                self._names.append(original.name)
        assert len(self._names) == len(indices), f"the source gave {len(self._names)} of {len(indices)} originals"
        self._ends = np.array(ends, dtype=np.int64)

    def read(self, indices: np.ndarray) -> Iterator[Original]:
        """The originals at `indices`, in any order."""
        with open(self._path, "rb") as file:
            for row in np.searchsorted(self._indices, indices).tolist():
                file.seek(self._ends[row])
                yield Original(self._names[row], file.read(self._ends[row + 1] - self._ends[row]))
