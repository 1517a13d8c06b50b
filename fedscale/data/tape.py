"""Where a walk through a tar gets its bytes: single headers of a file on a disk, or a stream that comes by once."""

from __future__ import annotations

import os
import stat
from typing import Any, BinaryIO, Protocol, runtime_checkable

CHUNK = 2**20  # bytes read from a stream at once


@runtime_checkable
class Source(Protocol):
    """Where the walk gets its bytes from; it asks for offsets that never decrease."""

    def at(self, offset: int, size: int) -> bytes: ...

    def end(self) -> int:
        """Bytes in all; asked for only when `at` has met the end."""


class Tape:
    """A stream read once, in large blocks, every byte of it passing through `digest`."""

    def __init__(self, file: BinaryIO, digest: Any = None) -> None:
        self._file, self._digest = file, digest
        self._held, self._start = b"", 0

    def at(self, offset: int, size: int) -> bytes:
        """The bytes at `offset`, fewer at the stream's end. What lies before `offset` is forgotten."""
        where = offset - self._start
        while where + size > len(self._held):
            missing = where + size - len(self._held) if where < len(self._held) else 0
            block = self._file.read(max(CHUNK, missing))
            if not block:
                break
            if self._digest is not None:
                self._digest.update(block)
            kept = self._held[where:]
            self._start += len(self._held) - len(kept)
            self._held = kept + block
            where = offset - self._start
        return self._held[where : where + size]

    def end(self) -> int:
        """Bytes read so far."""
        return self._start + len(self._held)


class _OnDisk:
    """A file on a disk: single headers by pread, so that data is never touched (mmap would die of a file cut now)."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def at(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def end(self) -> int:
        return os.fstat(self._descriptor).st_size


def source_of(file: BinaryIO) -> Source:
    """Single headers of a file on a disk; anything else as a Tape."""
    try:
        descriptor = file.fileno()
        on_disk = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:  # io.UnsupportedOperation is one
        on_disk = False
    return _OnDisk(descriptor) if on_disk else Tape(file)
