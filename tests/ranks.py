"""Scripts as ranks, forked from a process that has the libraries imported already: importing them takes half a minute.

What a launcher does beside starting ranks is tested where real launchers are used (`launching.torchrun`).
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.launching import free_port

PRELOADED = ["tests.preloaded"]
AFTER_A_FAILURE = 30.0  # seconds that the other ranks have to end by themselves


def ranks(count: int, script: Path, *words: object, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script as `count` ranks of one thread each; what they print comes rank after rank."""
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the fork server, and so of all its children
    context.set_forkserver_preload(PRELOADED)
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": free_port()} if count > 1 else {}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(count):
            places = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (script, [str(word) for word in words], places if count > 1 else dict(os.environ), folder, rank)
            processes.append(context.Process(target=_rank, args=arguments))
        for process in processes:
            process.start()
        _wait(processes, time.monotonic() + seconds)
        said = [
            "".join((Path(folder) / f"{rank}.{stream}").read_text() for rank in range(count))
            for stream in ("out", "err")
        ]
    code = next((process.exitcode for process in processes if process.exitcode), 0)
    return subprocess.CompletedProcess([str(script), *map(str, words)], code or 0, *said)


def _wait(processes: list[Any], end: float) -> None:
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            end = min(end, time.monotonic() + AFTER_A_FAILURE)
        if time.monotonic() > end:
            for process in processes:
                process.kill()
        time.sleep(0.01)


def _rank(script: Path, words: list[str], environment: dict[str, str], folder: str, rank: int) -> None:
    for number, stream in ((1, "out"), (2, "err")):
        file = os.open(Path(folder) / f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")
