"""Starting scripts as ranks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def torchrun(ranks: int, script: Path, *words: object, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script as `ranks` ranks of one thread each, 1 = by itself; the repository can be imported from it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, words)], capture_output=True, text=True, timeout=seconds,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def free_port() -> str:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
