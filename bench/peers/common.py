"""What the peers' runners share: arguments, threads, the clock of rounds, the JSON line at the end. No torch here.

A runner is `python bench/peers/NAME_runner.py --workload lr --data FILE.npz --rounds 5 --threads 1` in the peer's own
environment. It calls `start` before anything else: XLA and Ray's processes read their threads from the environment when
they start.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # the project is not installed in peers' environments

from workloads import WORKLOADS, Data, Workload, load_npz, sample_cohorts


@dataclass(frozen=True)
class Job:
    """What one call of a runner is to train."""

    workload: Workload
    file: Path
    data: Data
    weights: dict[str, NDArray]
    cohorts: NDArray[np.int64]  # [rounds, cohort]
    rounds: int
    threads: int


def limit_threads(threads: int) -> None:
    """For XLA, whose CPU client takes NPROC as the size of its pool, and for processes that this one starts."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))
    os.environ["NPROC"] = str(threads)
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # these runners measure CPUs


def job_of(name: str, file: Path, rounds: int, threads: int) -> Job:
    data, weights = load_npz(file)
    return Job(WORKLOADS[name], file, data, weights, sample_cohorts(WORKLOADS[name], rounds), rounds, threads)


def start(description: str) -> Job:
    """The job of the command line, with threads limited and its file read."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the .npz that bench/peers/models.py writes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    limit_threads(options.threads)
    return job_of(options.workload, options.data.absolute(), options.rounds, options.threads)


def process_start() -> float:
    """When this process was started, in seconds since boot (CLOCK_BOOTTIME), as /proc counts."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_rss() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Clock:
    """Wall and CPU seconds of rounds: `begin` before the first, `lap` after each.

    `cpu` gives the CPU seconds used up to now, `memory` the most bytes held up to now.
    """

    cpu: Callable[[], float] = time.process_time
    memory: Callable[[], int] = peak_rss
    round_seconds: list[float] = field(default_factory=list)
    round_cpu_seconds: list[float] = field(default_factory=list)
    startup_seconds: float = 0.0  # from the start of the process to the end of the first round
    peak_rss_bytes: int = 0  # up to the end of the last round
    _last: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        self._last = (time.perf_counter(), self.cpu())

    def lap(self) -> None:
        wall, cpu = time.perf_counter(), self.cpu()
        self.round_seconds.append(wall - self._last[0])
        self.round_cpu_seconds.append(cpu - self._last[1])
        if len(self.round_seconds) == 1:
            self.startup_seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - process_start()
        self.peak_rss_bytes = max(self.peak_rss_bytes, self.memory())
        self._last = (time.perf_counter(), self.cpu())


def report(job: Job, peer: str, package: str, clock: Clock, final_loss: float, framework: str) -> None:
    """Prints the JSON line. `framework` is torch or jax."""
    assert len(clock.round_seconds) == job.rounds, f"{len(clock.round_seconds)} rounds were run, not {job.rounds}"
    line = {
        "peer": peer,
        "version": importlib.metadata.version(package),
        "workload": job.workload.name,
        "rounds": job.rounds,
        "threads": job.threads,
        "round_seconds": clock.round_seconds,
        "round_cpu_seconds": clock.round_cpu_seconds,
        "startup_seconds": clock.startup_seconds,
        "peak_rss_bytes": clock.peak_rss_bytes,
        "final_loss": final_loss,
        framework: importlib.metadata.version(framework),
    }
    print(json.dumps(line), flush=True)
