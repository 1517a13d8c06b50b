"""Slurm's commands, and whether a controller answers them."""

from __future__ import annotations

import os
import shutil
import subprocess

from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient

CHECK = "Slurm"
PATIENCE = 5.0  # seconds


def slurm(patient: Patient) -> Finding:
    """sbatch, srun, the job that this is, and the controller's answer to `scontrol ping`."""
    there = {tool: shutil.which(tool) is not None for tool in ("sbatch", "srun", "scontrol")}
    job = os.environ.get("SLURM_JOB_ID")
    facts = {**there, "job": job}
    inside = f"; this is job {job}" if job else ""
    named = ", ".join(f"{tool} is {'' if there[tool] else 'not '}there" for tool in ("sbatch", "srun"))
    by_hand = "`fedscale submit --print` writes the scripts; hand them in where there is Slurm"
    if not there["sbatch"]:
        return Finding(CHECK, Gravity.NOTE, named + inside, by_hand, facts)
    if not there["scontrol"]:
        return Finding(CHECK, Gravity.UNCHECKED, f"{named}; no scontrol to ask the controller by{inside}", "", facts)
    try:
        asked = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=PATIENCE)
        said = next((line for line in (asked.stdout + asked.stderr).splitlines() if line.strip()), "no word")
        answers = asked.returncode == 0 and " is UP" in asked.stdout
    except subprocess.TimeoutExpired:
        said, answers = f"silent for {PATIENCE:g} s", False
    if answers:
        return Finding(CHECK, Gravity.FINE, f"{named}, and the controller answers{inside}", facts=facts)
    remedy = "start slurmctld, or see slurm.conf's SlurmctldHost, before `fedscale submit`"
    return Finding(CHECK, Gravity.NOTE, f"{named}, but no controller answers ({said.strip()}){inside}", remedy, facts)
