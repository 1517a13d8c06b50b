"""Checkpoint folders `<prefix>_N`: written beside, renamed, marker last; the newest complete one wins, two are kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedscale import files

MARKER = "COMPLETE"
KEPT = 2


@contextmanager
def checkpoint(folder: Path, prefix: str, number: int) -> Iterator[Path]:
    """Yield a temporary folder to write into; when the block ends well it becomes `folder/<prefix>_<number>`."""
    final = folder / f"{prefix}_{number}"
    temporary = under_way(folder, prefix, number)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                files.settle(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        files.write_text(final / MARKER, "")
    except Exception as error:
        files.raise_unwritable(final, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _complete(folder, prefix)[:-KEPT]:
        shutil.rmtree(folder / f"{prefix}_{old}")


def under_way(folder: Path, prefix: str, number: int) -> Path:
    """Where `checkpoint` has its temporary folder."""
    return folder / f".{prefix}_{number}.tmp"


def newest(folder: Path, prefix: str) -> tuple[int, Path] | None:
    """Number and folder of the newest complete checkpoint, or None."""
    numbers = _complete(folder, prefix)
    return (numbers[-1], folder / f"{prefix}_{numbers[-1]}") if numbers else None


def _complete(folder: Path, prefix: str) -> list[int]:
    names = (re.fullmatch(rf"{prefix}_(\d+)", path.name) for path in folder.glob(f"{prefix}_*"))
    return sorted(int(match[1]) for match in names if match and (folder / match[0] / MARKER).exists())
