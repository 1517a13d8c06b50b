"""A sweep as a Slurm array: one task a run; the final runs after the tuning's, where there is any."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fedscale import __version__, files
from fedscale.cluster.render import directive, render
from fedscale.cluster.submit import commit, refusal
from fedscale.errors import UserError
from fedscale.sweep.plan import Sweep, SweepRun

TEMPLATE = "sweep.sbatch"


def array(numbers: Sequence[int], at_once: int = 0) -> str:
    """Slurm's way to write numbers: 0, 1, 2, 5 is 0-2,5; `%N` behind it for N tasks at a time (0: no limit)."""
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b != a + 1)]
    ends = [*(a for a, b in pairwise(numbers) if b != a + 1), numbers[-1]]
    spans = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"{spans}%{at_once}" if at_once else spans


def script(sweep: Sweep, words: Sequence[str], numbers: Sequence[int], at_once: int = 0) -> Path:
    """Write the array's script for these runs to `slurm/` of the sweep's folder, where its logs go too.

    `words` are the command line's, SWEEP.yaml first.
    """
    logs = (sweep.folder / "slurm").resolve()
    path = logs / TEMPLATE
    values = {
        "NAME": sweep.config.name,
        "ARRAY": array(numbers, at_once),
        "FOLDER": directive(str(Path.cwd()), "the working folder"),
        "LOGS": directive(f"{logs}/%a.log", "the sweep's folder"),
        "THREADS": str(sweep.base.threads or 1),
        "RECORD": shlex.quote(f"fedscale {__version__}, {commit()}"),
        "COMMAND": shlex.join([sys.executable, "-m", "fedscale", "sweep", *words]),
    }
    files.write_text(path, render(TEMPLATE, values, {}, list(sweep.config.slurm.options)))
    return path


def phases(unfinished: Sequence[SweepRun]) -> list[list[int]]:
    """The numbers that may be worked on at once: the tuning's, then those that wait for it."""
    first = [run.number for run in unfinished if not run.after]
    later = [run.number for run in unfinished if run.after]
    return [numbers for numbers in (first, later) if numbers]


def submit(path: Path, waves: Sequence[Sequence[int]], at_once: int = 0) -> list[str]:
    """Submit the script once for each wave of runs, each after the one before it; returns the jobs' numbers.

    Raises UserError where there is no sbatch, or it refuses.
    """
    jobs: list[str] = []
    for numbers in waves:
        after = [f"--dependency=afterok:{jobs[-1]}", "--kill-on-invalid-dep=yes"] if jobs else []
        command = ["sbatch", "--parsable", f"--array={array(numbers, at_once)}", *after, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            raise UserError("--submit: no sbatch on this machine; --print-slurm prints the script for one") from None
        except subprocess.CalledProcessError as error:
            raise UserError(f"--submit: {refusal(error.stderr, 'see slurm.options')}") from None
        jobs.append(done.stdout.strip().partition(";")[0])
    return jobs
