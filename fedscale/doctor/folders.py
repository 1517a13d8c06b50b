"""The folders that runs write to and read from: there, writable, with room, and how fast."""

from __future__ import annotations

import os
import shutil
import tempfile
from itertools import islice
from pathlib import Path

from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient
from fedscale.doctor.speed import Speed, measured, reading
from fedscale.files import unwritable

RUN, SHARDS = "run folder", "shards' folder"
SLOW = 50e6  # bytes a second below which a disk holds training up
SLOW_FILES = 20.0  # small files a second: captions and checkpoints publish such
ENOUGH_TARS = 64
LITTLE = 2**30  # bytes free
MB = 1e6


def run_folder(patient: Patient) -> Finding:
    """Write access, free space, and the speed of its file system."""
    return _written(RUN, patient.run_folder, "out=", "")


def shards_folder(patient: Patient) -> Finding:
    """Where there are shards, how fast they are read; else as the run folder, or a word that it is the same disk."""
    folder = patient.shards_folder
    tars = list(islice(folder.glob("*/*.tar"), ENOUGH_TARS)) if patient.named else []
    if not tars:
        if _device(folder) == _device(patient.run_folder) and os.access(existing(folder), os.W_OK):
            return Finding(SHARDS, Gravity.FINE, f"{folder}: no shards yet; the run folder's file system")
        return _written(SHARDS, folder, "data.dir=", ", or `fedscale submit --stage-in`")
    try:
        read = reading(tars)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Finding(SHARDS, Gravity.BROKEN, f"{folder}: cannot be read ({reason})", "give this user the right to")
    facts = {"read_bytes_per_second": round(read)}
    found = f"{folder}: its shards are read at {read / MB:,.0f} MB/s"
    if read < SLOW:
        remedy = "copy them to the nodes' own disks: `fedscale submit --stage-in`"
        return Finding(SHARDS, Gravity.NOTE, found, remedy, facts, 1 / read)
    return Finding(SHARDS, Gravity.FINE, found, facts=facts, worse=1 / read)


def _written(check: str, folder: Path, key: str, other: str) -> Finding:
    try:
        place = existing(folder)
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryDirectory(prefix=".fedscale-doctor-", dir=place) as probe:
            speed = measured(Path(probe))
    except OSError as error:
        explained = unwritable(folder, error)
        reason = str(explained) if explained is not error else f"{folder}: {error.strerror or error}"
        return Finding(check, Gravity.BROKEN, reason, f"name another by {key}")
    facts = {
        "free_bytes": free,
        "write_bytes_per_second": round(speed.write),
        "read_bytes_per_second": round(speed.read),
        "small_files_per_second": round(speed.files, 1),
    }
    found = f"{folder}: writable, {free / 1e9:,.0f} GB free; {_told(speed)}"
    if free < LITTLE:
        return Finding(check, Gravity.NOTE, found, f"free some space, or name another by {key}", facts)
    slow = speed.write < SLOW or speed.read < SLOW or speed.files < SLOW_FILES
    gravity, remedy = (Gravity.NOTE, f"slow: {key} on a faster disk{other}") if slow else (Gravity.FINE, "")
    return Finding(check, gravity, found, remedy, facts, 1 / speed.write)


def _told(speed: Speed) -> str:
    return f"write {speed.write / MB:,.0f}, read {speed.read / MB:,.0f} MB/s, {speed.files:,.0f} small files/s"


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _device(path: Path) -> int:
    return existing(path).stat().st_dev
