"""Threads a rank against the cores that it may use."""

from __future__ import annotations

import os
from pathlib import Path

from fedscale.data.workers import cores
from fedscale.device import threads_for
from fedscale.distributed.launch import sharing
from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient

CHECK = "threads"
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # `max 100000`, or microseconds of CPU time in so many


def threads(patient: Patient) -> Finding:
    """Threads of this rank, the cores it may run on, the ranks that share them, the container's quota."""
    each, here, ranks, quota = threads_for(patient.config), cores(), sharing(cores()), quota_of(QUOTA)
    openmp = os.environ.get("OMP_NUM_THREADS", "")
    facts = {"threads": each, "cores": here, "ranks_sharing": ranks, "quota_cores": quota, "omp_num_threads": openmp}
    shared = f", {ranks} ranks share them" if ranks > 1 else ""
    found = f"{each} a rank, {here} cores{shared}"
    if each * max(ranks, patient.config.jobs) > here:
        return Finding(CHECK, Gravity.NOTE, f"{found}: more threads than cores", "set threads= lower, or 0", facts)
    if quota is not None and quota < here:
        found = f"{found}; a quota allows {quota:g} cores"
        if each * ranks > quota:
            return Finding(CHECK, Gravity.NOTE, found, f"set threads={max(1, int(quota) // ranks)}", facts)
    return Finding(CHECK, Gravity.FINE, found, facts=facts)


def quota_of(path: Path) -> float | None:
    """Cores that a cgroup's `cpu.max` allows; None without such a file or limit."""
    try:
        time, _, period = path.read_text().partition(" ")
        return None if time == "max" else int(time) / int(period)
    except (OSError, ValueError):
        return None
