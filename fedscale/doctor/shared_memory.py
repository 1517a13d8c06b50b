"""/dev/shm, through which loader processes hand over batches, and NCCL and gloo's neighbours messages."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient

CHECK = "shared memory"
PLACE = Path("/dev/shm")
ENOUGH = 2**30  # bytes free: a container's default of 64 MB is too small for loader processes
PROBE = 2**23


def shared_memory(patient: Patient, place: Path = PLACE) -> Finding:
    """Its free bytes, after some have really been taken."""
    remedy = "give the container more: --shm-size=8g or --ipc=host"
    if patient.config.pretrain.workers:
        remedy += f"; or pretrain.workers=0 (now {patient.config.pretrain.workers})"
    if not place.is_dir():
        return Finding(CHECK, Gravity.NOTE, f"{place} is not there", remedy)
    space = shutil.disk_usage(place)
    facts = {"free_bytes": space.free, "total_bytes": space.total}
    found = f"{place}: {space.free / 2**30:.1f} of {space.total / 2**30:.1f} GiB free"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            os.posix_fallocate(file.fileno(), 0, PROBE)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Finding(CHECK, Gravity.BROKEN, f"{found}; 8 MB cannot be taken ({reason})", remedy, facts)
    if space.free < ENOUGH:
        return Finding(CHECK, Gravity.NOTE, found, remedy, facts)
    return Finding(CHECK, Gravity.FINE, found, facts=facts)
