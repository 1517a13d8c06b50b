"""The clock: not before the files that are installed, at one with the run folder's file system, and steady.

Leases compare no two machines' clocks; but object stores and the hub refuse requests of a clock minutes off.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence

from fedscale import house
from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.folders import existing
from fedscale.doctor.patient import Clocks, Patient

CHECK = "clock"
SKEW = 5.0  # seconds that clocks may differ
REMEDY = "have the machines' time set by NTP (chronyd, systemd-timesyncd)"


def clock(patient: Patient) -> Finding:
    """Jumps since the doctor began, and the difference from the clock of the run folder's file system."""
    behind = (house.PACKAGE / "__init__.py").stat().st_mtime - time.time()
    if behind > SKEW:
        return Finding(CHECK, Gravity.NOTE, f"{behind:,.0f} s before the time of fedscale's own files", REMEDY)
    now = Clocks()
    jumped = jump(patient.began, now)
    facts = {"jumped_seconds": round(jumped, 3), "file_system_ahead_seconds": None}
    if abs(jumped) > SKEW:
        return Finding(
            CHECK, Gravity.NOTE, f"jumped by {jumped:+.1f} s within {_span(patient, now):.0f} s", REMEDY, facts
        )
    try:
        with tempfile.NamedTemporaryFile(dir=existing(patient.run_folder), prefix=".fedscale-doctor-") as file:
            file.write(b"now")
            file.flush()
            ahead = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError:
        found = "steady; the run folder's file system not compared: it cannot be written"
        return Finding(CHECK, Gravity.UNCHECKED, found, "see the run folder", facts)
    facts["file_system_ahead_seconds"] = round(ahead, 3)
    if abs(ahead) > SKEW:
        return Finding(CHECK, Gravity.NOTE, f"the run folder's file system is {ahead:+.1f} s off", REMEDY, facts)
    return Finding(CHECK, Gravity.FINE, "steady, and the run folder's file system agrees", facts=facts)


def jump(before: Clocks, after: Clocks) -> float:
    """Seconds that the wall's clock was set forward between two readings."""
    return (after.wall - before.wall) - (after.steady - before.steady)


def between_hosts(times: Sequence[float], hosts: Sequence[str]) -> Finding:
    """From the wall's clocks of all ranks, read at once (behind one barrier)."""
    first, last = min(times), max(times)
    facts = {"spread_seconds": round(last - first, 3)}
    if last - first > SKEW:
        late, early = hosts[times.index(first)], hosts[times.index(last)]
        found = f"{late} is {last - first:.1f} s behind {early}"
        return Finding("clocks of the hosts", Gravity.NOTE, found, REMEDY, facts)
    found = f"{len(set(hosts))} hosts within {last - first:.3f} s of one another"
    return Finding("clocks of the hosts", Gravity.FINE, found, facts=facts)


def _span(patient: Patient, now: Clocks) -> float:
    return now.steady - patient.began.steady
