"""One job at a time works on a folder: a lock on a file in it, which says who has it.

It is the kernel's (flock), which network file systems pass on (NFS; Lustre mounted with `flock`): free at once when its
owner is dead, held by one that is frozen. A lease (`lease.py`) takes its place where the file system has no locks: then
a dead or frozen owner's is free after six heartbeats, and one that wakes up again is asked to stop.
"""

from __future__ import annotations

import dataclasses
import fcntl
import getpass
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from fedscale import files
from fedscale.distributed.launch import this_place
from fedscale.errors import Stopped, UserError
from fedscale.lease import Lease, Leases
from fedscale.session import Flag, Session

FILE = ".lock"
LITTER = (FILE, f"{FILE}.lease")  # of a killed owner; the next one takes it over
OVER = b"-"  # the first byte of a file whose lock was released: on NFS another machine may find it by its name still
PATIENCE = 5.0  # seconds that an owner which is just dying has to be gone
REQUEUED = 150.0  # the same for the last start of this very Slurm job: NFS frees a dead node's locks after 90
HEARTBEAT = 5.0  # seconds, of the lease
POLL = 0.2  # seconds between two tries
COMMAND = 200  # characters kept of the owner's command


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a lock, as the file says; the fields are empty where it says nothing. `work`: what it holds it for."""

    host: str = ""
    pid: int = 0
    user: str = ""
    job: str = ""  # Slurm's
    restart: int = 0
    rank: int = 0
    since: str = ""  # by the owner's clock; shown, never compared
    command: str = ""
    work: str = ""

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        who = f"rank {self.rank} of job {self.job}" if self.job else "another process"
        today = datetime.now().astimezone().isoformat()[:10]
        since = self.since[11:16] if self.since.startswith(today) else self.since[:16].replace("T", " ")
        return f"{who} (pid {self.pid} of {self.user} on {self.host}, since {since})"


def this_owner(work: str = "") -> Owner:
    """This process, beginning now."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, say
        user = str(os.getuid())
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        user=user,
        job=os.environ.get("SLURM_JOB_ID", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        rank=this_place().rank,
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=shlex.join(sys.argv)[:COMMAND],
        work=work,
    )


def owner_of(path: Path) -> Owner | None:
    """Who holds the lock now; None where nobody does."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _read(path)
    except OSError:
        return _read(path) if path.with_name(f"{path.name}.lease").exists() else None
    return None


@contextmanager
def held(
    path: Path, what: object, session: Session, work: str = "", wait: Callable[[Owner], bool] = lambda owner: False
) -> Iterator[Flag]:
    """Hold the lock `path` of `what`; yields a flag that is set should it be lost, which a lease alone can be.

    While another process has it: waits for it where `wait` says so of its owner, else as long as one that is dying
    may take, and then raises UserError with the owner's name. Raises Stopped when the session is asked to stop.
    """
    me, leases = this_owner(work), Leases(path.parent, HEARTBEAT)
    began, told = time.monotonic(), False
    while (lock := _taken(path, me, leases, session)) is None:
        owner = _read(path)
        if session.stop_requested:
            raise Stopped(f"{what}: stopped while {owner} worked on it")
        if wait(owner):
            if not told:
                session.reporter.say(f"{what}: {owner} works on it; waiting for its end")
            told = True
        elif time.monotonic() - began >= (REQUEUED if _is_last_start(owner, me) else PATIENCE):
            raise UserError(f"{what}: {owner} works on it; wait for its end, or stop it")
        time.sleep(POLL)
    try:
        yield lock.lost
    finally:
        lock.release()


def take(file: int) -> bool:
    """Take the kernel's lock on an open file, until it is closed; False where the file system has no locks.

    Raises BlockingIOError while another open file has it, of any machine that shares the file system.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP, and what else file systems say
        return False
    return True


def is_at(path: Path, file: int) -> bool:
    """Whether the open file is still the one of this path: its owner may have removed it while we opened it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False


class _Lock:
    """A lock that is held: the open file, what lets go of it, and the lease where that takes the kernel's place."""

    def __init__(self, path: Path, file: int, lease: Lease | None, undo: ExitStack) -> None:
        self._path, self._file, self._undo = path, file, undo
        self.lost: Flag = lease.taken if lease else threading.Event()

    def release(self) -> None:
        """Remove the file, and let go."""
        with self._undo, suppress(OSError):  # read-only by now: the file stays, and nobody's lock on it
            if not self.lost.is_set():
                self._path.unlink()
                os.pwrite(self._file, OVER, 0)


def _taken(path: Path, me: Owner, leases: Leases, session: Session) -> _Lock | None:
    """The lock, with our name in it; None while another has it. Raises UserError where no file can be written."""
    try:
        files.make_folder(path.parent)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise files.unwritable(path, error) from error
    with ExitStack() as undo:
        undo.callback(os.close, file)
        try:
            lease = None if take(file) else undo.enter_context(_leased(path, leases, session))
            if not is_at(path, file) or os.pread(file, 1, 0) == OVER:
                return None
        except BlockingIOError:
            return None
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(dataclasses.asdict(me)).encode(), 0)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise files.unwritable(path, error) from error
        return _Lock(path, file, lease, undo.pop_all())


def _leased(path: Path, leases: Leases, session: Session) -> Lease:
    lease = leases.claim(path.name)
    if lease is None:
        leases.revive([path.name], lambda: session.stop_requested)
        lease = leases.claim(path.name)
    if lease is None:
        raise BlockingIOError("leased by another process")
    return lease


def _read(path: Path) -> Owner:
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # being written, or removed
        return Owner()


def _is_last_start(owner: Owner, me: Owner) -> bool:
    """Whether the owner is this very Slurm job as it was started before, on a node that was lost since."""
    return bool(me.job) and owner.job == me.job and owner.restart < me.restart
