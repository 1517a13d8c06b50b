"""Leases: how workers whose number changes share work (shards, runs of a sweep), with files alone.

`NAME.lease` is created exclusively (O_EXCL) and holds its owner and a count that the owner raises every heartbeat.
Another worker takes it over after six heartbeats of its own clock in which the count stood still: no two machines'
clocks are ever compared. A lease only saves work; should two workers hold one for a moment, both publish the same
results.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fedscale import files

MISSED = 6  # heartbeats


class Lease:
    """One held lease; a thread keeps it alive until it is released, and sets `taken` once it is another worker's."""

    def __init__(self, path: Path, owner: str, heartbeat: float) -> None:
        self._path, self._owner, self._heartbeat = path, owner, heartbeat
        self.taken = threading.Event()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {path.name}", daemon=True)
        self._thread.start()

    def held(self) -> bool:
        """Whether the lease names this worker."""
        content = _read(self._path)
        return content is not None and content[0] == self._owner

    def lost(self) -> bool:
        """Whether another worker holds it now: this one was frozen for long. One that is gone is nobody's, still."""
        content = _read(self._path)
        return content is not None and content[0] not in ("", self._owner)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()
        if self.held():
            with suppress(OSError):
                self._path.unlink()

    def _beat(self) -> None:
        count = 0
        while not self._released.wait(self._heartbeat):
            count += 1
            with suppress(OSError):  # a beat missed; the file system may be back at the next
                if self.lost():
                    self.taken.set()
                    return
                _write(self._path, self._owner, count)


class Leases:
    """The leases of one folder, as one worker claims and watches them."""

    def __init__(self, folder: Path, heartbeat: float) -> None:
        self._folder, self._heartbeat = folder, heartbeat
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    def claim(self, name: str) -> Lease | None:
        """The lease `name` if nobody has it, else None."""
        path = self._path(name)
        try:
            files.make_folder(path.parent)
            with open(path, "x", encoding="utf-8") as file:
                file.write(_content(self._owner, 0))
        except FileExistsError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # made, and without its content
                with suppress(OSError):
                    path.unlink()
            raise files.unwritable(path, error) from error
        return Lease(path, self._owner, self._heartbeat)

    def revive(self, names: list[str], give_up: Callable[[], bool] = lambda: False) -> list[str]:
        """Watch the leases `names` for six heartbeats; clear those that stood still, and return them to be claimed.

        It returns at once what has become free meanwhile, and nothing when `give_up` says so.
        """
        before = {name: _read(self._path(name)) for name in names}
        free = [name for name, content in before.items() if content is None]
        waiting = [name for name in names if before[name] is not None]
        began = time.monotonic()
        while waiting and not free and time.monotonic() - began < MISSED * self._heartbeat:
            if give_up():
                return []
            time.sleep(self._heartbeat / 2)
            free = [name for name in waiting if _read(self._path(name)) is None]
            waiting = [name for name in waiting if _read(self._path(name)) == before[name]]
        if free:
            return free
        for name in waiting:
            if _read(self._path(name)) != before[name]:
                continue  # another worker was quicker
            # Renamed before it goes, so that of two workers who see it dead only one clears this very lease.
            aside = self._path(name).with_suffix(f".dead.{secrets.token_hex(4)}")
            with suppress(FileNotFoundError):
                os.rename(self._path(name), aside)
                aside.unlink()
        return waiting

    def owners(self, names: list[str]) -> dict[str, str]:
        """Who holds what at present, of the folder's file `names`: for the status."""
        stems = sorted(name.removesuffix(".lease") for name in names if name.endswith(".lease"))
        found = {stem: _read(self._path(stem)) for stem in stems}
        return {name: content[0] for name, content in found.items() if content}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.lease"


def _content(owner: str, count: int) -> str:
    return json.dumps({"owner": owner, "beat": count})


def _write(path: Path, owner: str, count: int) -> None:
    """Replace the content in one step."""
    temporary = path.with_name(f".{path.name}.{owner.rpartition(':')[2]}")
    try:
        temporary.write_text(_content(owner, count), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _read(path: Path) -> tuple[str, int] | None:
    """(owner, beat) of a lease; None where there is none. One just being created has no owner yet."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return str(value["owner"]), int(value["beat"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "", 0
