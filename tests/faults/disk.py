"""A small disk of the test's own, which fills up and turns read-only for real: a tmpfs, mounted where we may."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = "8m"
BLOCK = 4096


class Disk:
    """A mounted tmpfs of SIZE."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"
        self._read_only = False

    def fill(self) -> None:
        """Take what is free, to the last byte."""
        with open(self._filler, "wb", buffering=0) as file:
            for size in (BLOCK, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def forbid_writing(self) -> None:
        """Lay a read-only view over the disk: whatever is opened from now on is opened there."""
        mount("--bind", self.place, self.place)
        mount("-o", "remount,bind,ro", self.place)
        self._read_only = True

    def mend(self) -> None:
        """Make room, and allow writing again."""
        if self._read_only:
            unmount(self.place)
            self._read_only = False
        self._filler.unlink(missing_ok=True)


@contextmanager
def mounted(place: Path) -> Iterator[Disk]:
    """A new disk at `place`. Raises PermissionError where we may not mount one."""
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place)
    disk = Disk(place)
    try:
        yield disk
    finally:
        disk.mend()
        unmount(place)


def mount(*words: object) -> None:
    """Raises PermissionError where we may not."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr.strip().splitlines()[0])


def unmount(place: Path) -> None:
    """Take it away, also from under files that are open."""
    subprocess.run(["umount", "-l", str(place)], check=True)
