"""How fast a folder's file system is: one file of some megabytes, and small files published as runs publish theirs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedscale.files import published

BYTES = 2**25  # of the large file, and of what is read
PIECE = 2**22
SMALL_FILES, SMALL_BYTES = 32, 2**12


@dataclass(frozen=True)
class Speed:
    """Bytes a second, small files a second."""

    write: float
    read: float
    files: float


def measured(folder: Path) -> Speed:
    """Write, fsync and read back a file of 32 MB, publish 32 of 4 KB, and take all of it away. Raises OSError."""
    large, piece = folder / "large", os.urandom(PIECE)  # random: a file system may compress zeros
    began = time.perf_counter()
    with open(large, "wb") as file:
        for _ in range(BYTES // PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    write = BYTES / (time.perf_counter() - began)
    read = reading([large])
    began = time.perf_counter()
    for number in range(SMALL_FILES):
        with published(folder / f"small{number}") as temporary:
            temporary.write_bytes(piece[:SMALL_BYTES])
    return Speed(write, read, SMALL_FILES / (time.perf_counter() - began))


def reading(paths: Iterable[Path]) -> float:
    """Bytes a second of reading the first 32 MB of these files, which the kernel is asked to forget before.

    What a server or a disk has cached is read from there all the same. Raises OSError.
    """
    done, seconds = 0, 0.0
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while done < BYTES and (data := file.read(PIECE)):
                done += len(data)
            seconds += time.perf_counter() - began
        if done >= BYTES:
            break
    return done / max(seconds, 1e-9)
