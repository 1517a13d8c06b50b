"""What the config stands for, and whether this launch and its run folder can take it."""

from __future__ import annotations

import os

from fedscale.distributed.strategy import read_launch_file
from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient
from fedscale.runs import STAGES
from fedscale.stages import children, needed, result_folder


def plan(patient: Patient) -> Finding:
    """Runs and stages. Raises UserError: a launch file, or `federate.shard`, that this launch does not fit."""
    runs = children(patient.config)
    having = {stage for run in runs for stage in needed(run)}
    stages = [stage for stage in STAGES if stage in having]
    if patient.config.launch:
        read_launch_file(patient.config.launch, dict(os.environ))
    for run in runs:
        world, cut = patient.place.world, run.federate.shard
        if world > 1 and world % cut:
            remedy = f"launch a multiple of {cut}, or set federate.shard=1"
            return Finding("config", Gravity.MISTAKE, f"federate.shard={cut} does not divide {world} ranks", remedy)
    facts = {"runs": len(runs), "stages": stages}
    return Finding("config", Gravity.FINE, f"{len(runs)} run(s) of {', '.join(stages)}", facts=facts)


def results(patient: Patient) -> Finding:
    """How many stages are complete. Raises UserError: a folder that holds another config's result."""
    folders = {}
    for run in children(patient.config):
        for stage in needed(run):
            folder = result_folder(run, stage)
            folders[folder.path] = folder
    if patient.config.caption.overwrite:
        folders = {path: folder for path, folder in folders.items() if not path.name.startswith("caption")}
    for folder in folders.values():
        folder.check()
    done = sum(folder.complete for folder in folders.values())
    facts = {"stages": len(folders), "complete": done}
    found = f"{done} of {len(folders)} stages complete in {patient.run_folder}, none of another config"
    return Finding("results", Gravity.FINE, found, facts=facts)
