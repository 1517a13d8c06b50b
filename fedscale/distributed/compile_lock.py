"""Locks that a killed compilation left, for which older versions of torch wait without end.

torch compiles DeepSpeed's operations at first use, under a file `lock`. Before it locked by the kernel (pytorch issue
189245; torch 2.15 does, and its lock files stay and mean nothing), the file itself was the lock: made and held open by
who compiles, removed at the end, but not by a process that was killed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

LOG = logging.getLogger(__name__)  # which any rank may use: the first one of each host has something to say
OPS = ("cpu_adam", "deepspeed_shm_comm")  # what our strategies have compiled: on CPUs, and for ZeRO's offloading
STALE = 300.0  # seconds without a change beside it, after which nobody compiles there, on whatever host
LOCAL = ("ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs")  # file systems of one host
FIRST_NAMESPACE = "pid:[4026531836]"  # the kernel's constant; processes outside another one are not seen in it


def release_dead_locks(root: Path, stale: float = STALE) -> None:
    """Where torch waits for files, remove the locks below `root` whose process is gone, with a line on stderr for each.

    One that a process of this host has open is left to torch, which waits for it. One that a process elsewhere may have
    (a shared file system, another container) is removed once nothing beside it has changed for `stale` seconds. One
    rank of a host calls this, while no rank of the job compiles.
    """
    if not torch_waits_for_files():
        return
    for name in OPS:
        lock, told = root / name / "lock", False
        seen, since = 0.0, time.monotonic()
        while lock.exists() and not is_held(lock):
            if (newest := newest_beside(lock)) != seen:
                seen, since = newest, time.monotonic()
            if sees_every_process(lock):
                reason = "no process has it open"
            elif max(time.time() - newest, time.monotonic() - since) > stale:
                reason = f"nothing beside it has changed for {stale:g} s"
            else:
                if not told:
                    LOG.warning(f"{lock}: another host may be compiling it; delete it if none is, or wait {stale:g} s")
                told = True
                time.sleep(0.5)
                continue
            lock.unlink(missing_ok=True)
            LOG.warning(f"{lock}: removed, a killed compilation had left it ({reason})")


def torch_waits_for_files() -> bool:
    """Whether this torch takes a lock file for a lock as long as it exists."""
    return hasattr(_cpp_extension(), "FileBaton")


def is_dead(lock: Path, stale: float = STALE) -> bool:
    """Whether it is known, without waiting, that torch would wait for this lock in vain."""
    return (
        torch_waits_for_files()
        and lock.exists()
        and not is_held(lock)
        and (sees_every_process(lock) or time.time() - newest_beside(lock) > stale)
    )


def is_held(lock: Path) -> bool:
    """Whether a process of this host has it open, as far as they can be seen."""
    wanted = str(lock.resolve())
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(opened) == wanted:
                return True
        except OSError:
            continue  # it has ended, or is another user's
    return False


def sees_every_process(lock: Path) -> bool:
    """Whether whoever may hold it would be found by `is_held`: on this host, in sight, and of this user."""
    try:
        found = lock.stat()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return False
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    kinds = {line.partition(" - ")[2].split()[0] for line in mounts if line.split()[2] == device}
    mine = os.getuid() in (0, found.st_uid)
    return mine and namespace == FIRST_NAMESPACE and bool(kinds) and kinds <= set(LOCAL)


def newest_beside(lock: Path) -> float:
    """When a file of the lock's folder was last written; 0 once they are gone."""
    try:
        return max((path.stat().st_mtime for path in lock.parent.iterdir()), default=0.0)
    except OSError:
        return 0.0


def build_folder() -> Path:
    """Where torch puts compiled extensions, without making it."""
    if root := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(root)
    kind = f"cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "cpu"
    return (
        Path(_cpp_extension().get_default_build_root())
        / f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}_{kind}"
    )


def _cpp_extension() -> Any:
    logging.disable(logging.WARNING)  # importing it tells that there is no CUDA
    try:
        from torch.utils import cpp_extension
    finally:
        logging.disable(logging.NOTSET)
    return cpp_extension
