"""Random access to a source that can only be read in order: its wanted images are copied once into flat files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedscale.data.sources.base import Original


@dataclass(frozen=True)
class Spooled:
    """Some images of a spool's file, read one at a time: image i is the bytes from `starts[i]` to `ends[i]`."""

    path: Path
    names: list[str]
    starts: np.ndarray
    ends: np.ndarray

    def __iter__(self) -> Iterator[Original]:
        with open(self.path, "rb") as file:
            for name, start, end in zip(self.names, self.starts.tolist(), self.ends.tolist(), strict=True):
                file.seek(start)
                yield Original(name, file.read(end - start))


@dataclass(frozen=True)
class _Copied:
    """One split's file: the bytes of the originals at `indices`, end to end; those of row i end at `ends[i + 1]`."""

    path: Path
    indices: np.ndarray
    names: list[str]
    ends: np.ndarray


class Spool:
    """Copies of originals in `folder`, which is made; read like a source, in any order, until it is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._splits: dict[str, _Copied] = {}
        folder.mkdir()

    def copy(self, split: str, indices: np.ndarray, originals: Iterable[Original]) -> None:
        """Keep a split's originals, which are those at the ascending `indices`."""
        path = self._folder / split
        names, ends = list[str](), [0]
        with open(path, "wb") as file:
            for original in originals:
                file.write(original.image)
                ends.append(ends[-1] + len(original.image))
                names.append(original.name)
        assert len(names) == len(indices), f"the source gave {len(names)} of {len(indices)} originals"
        self._splits[split] = _Copied(path, indices, names, np.array(ends, dtype=np.int64))

    def read(self, split: str, indices: np.ndarray) -> Spooled:
        """The originals at `indices`, in that order."""
        held = self._splits[split]
        rows = np.searchsorted(held.indices, indices)
        names = [held.names[row] for row in rows.tolist()]
        return Spooled(held.path, names, held.ends[rows], held.ends[rows + 1])

    def remove(self) -> None:
        """Delete the copies and their folder."""
        for held in self._splits.values():
            held.path.unlink()
        self._folder.rmdir()
