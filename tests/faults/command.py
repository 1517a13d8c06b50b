"""`fedscale` itself as ranks or workers of one launch, forked from a process that has its libraries imported."""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.networks import Network
from tests.launching import free_port
from tests.ranks import PRELOADED

NEW_HOSTNAME = 0x04000000  # CLONE_NEWUTS: a hostname of its own


@dataclass(frozen=True)
class Process:
    """One rank or worker: what it says goes to `log`, line by line."""

    process: Any
    log: Path
    host: str

    @property
    def number(self) -> int:
        return int(self.process.pid)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ended(self, seconds: float) -> int | None:
        """Its exit code, once it ends within the seconds; None if it does not."""
        self.process.join(seconds)
        code: int | None = self.process.exitcode
        return code

    def is_kept_waiting(self) -> None:
        """It comes to a standstill, and gives signs of life: as if it had a hundred times the work of the others."""
        os.kill(self.number, signal.SIGUSR1)

    def clear_away(self) -> None:
        """Kill it, should it live."""
        self.process.kill()
        self.process.join()


def start(words: list[str], folder: Path, count: int = 2, networks: tuple[Network, ...] = ()) -> list[Process]:
    """`fedscale WORDS` in `folder` as `count` ranks, as srun would start them: each has RANK, nobody watches them.

    `networks`: one for each rank, which then is a host of that name.
    """
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.set_forkserver_preload(PRELOADED)
    launch = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(1 if networks else count)}
    launch |= {"MASTER_ADDR": networks[0].address if networks else "127.0.0.1", "MASTER_PORT": free_port()}
    launch |= {"GLOO_SOCKET_IFNAME": networks[0].interface} if networks else {}
    begun = []
    for rank in range(count):
        places = {**os.environ, **launch, "RANK": str(rank), "LOCAL_RANK": "0" if networks else str(rank)}
        log = folder / f"{words[0]}-{rank}-{launch['MASTER_PORT']}.log"
        log.touch()
        network = networks[rank] if networks else None
        process = context.Process(
            target=_run, args=(words, folder, places if count > 1 else dict(os.environ), log, network)
        )
        process.start()
        begun.append(Process(process, log, network.name if network else socket.gethostname()))
    return begun


def carried_out(words: list[str], folder: Path, count: int = 2) -> str:
    """The command from beginning to end on its ranks; what they said."""
    begun = start(words, folder, count)
    try:
        codes = [rank.ended(300) for rank in begun]
        said = "".join(rank.said for rank in begun)
        assert codes == [0] * count, said
        return said
    finally:
        for rank in begun:
            rank.clear_away()


def _run(words: list[str], folder: Path, environment: dict[str, str], log: Path, network: Network | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if network:
        network.enter()
        if ctypes.CDLL(None, use_errno=True).unshare(NEW_HOSTNAME):
            raise OSError(ctypes.get_errno(), "unshare")
        socket.sethostname(network.name)
    signal.signal(signal.SIGUSR1, lambda number, frame: threading.Event().wait(3600))
    sys.argv = ["fedscale", *words]
    from fedscale.cli import main

    main()
