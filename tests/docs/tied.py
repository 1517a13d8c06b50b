"""A command that ends with the tests that started it."""

import ctypes
import os
import signal
import subprocess
from pathlib import Path

LIBC = ctypes.CDLL(None)  # loaded before a fork
PR_SET_PDEATHSIG = 1


def tied(words: list[str], folder: Path, environment: dict[str, str]) -> int:
    """Run a command to its end; its exit code.

    Ctrl-C and SIGTERM end it with all its children, and are KeyboardInterrupt here; SIGKILL of this process is SIGTERM
    to the command alone.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with subprocess.Popen(
            words, cwd=folder, env=environment, process_group=0, preexec_fn=_end_with_parent
        ) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
