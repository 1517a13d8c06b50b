"""Starting scripts as ranks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LAUNCHERS = {  # two ranks each, by python's arguments
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fedscale"],
    "accelerate": ["-m", "accelerate.commands.launch", "--config_file", str(REPOSITORY / "launch/accelerate/ddp.yaml"),
                   "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0", "-m", "fedscale"],
}  # fmt: skip


def torchrun(ranks: int, script: Path | str, *words: object, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script as `ranks` ranks of one thread each, 1 = by itself; the repository can be imported from it.

    `script` may be `-m` or, of one rank, `-c`, with a module or code as the next word.
    """
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
