"""Writing the scripts of a request beside the run, and handing them in to Slurm."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedscale import __version__, files, house
from fedscale.cluster.prepare import is_prepared
from fedscale.cluster.request import Request
from fedscale.cluster.scripts import Scripts
from fedscale.config import Config, to_dict, to_yaml
from fedscale.errors import UserError
from fedscale.runs import STAGES, environment
from fedscale.stages import children, needed

CHAIN = "pipeline.sbatch"


@dataclass(frozen=True)
class Submission:
    """Scripts on a disk: those of `stages`, one after another, and the one that submits them all, `chain`."""

    folder: Path
    stages: list[str]
    chain: Path

    def script(self, stage: str) -> Path:
        return self.chain if stage == "pipeline" else self.folder / f"{stage}.sbatch"


def write_scripts(config: Config, request: Request) -> Submission:
    """Write the scripts of a request to `slurm/` of the run's folder, with the resolved config and a record of both.

    The jobs read this config, so that changes to the YAML files reach no job that waits. Raises UserError for a stage
    that no run of the config has, and for values that Slurm's scripts cannot name.
    """
    if request.container and "://" not in request.container and not Path(request.container).exists():
        raise UserError(f"--container={request.container}: no such file; build it by launch/apptainer/fedscale.def")
    stages = _stages(config, request.stage)
    folder = (Path(config.out) / config.name / "slurm").resolve()
    snapshot = folder / f"config-{files.fingerprint(to_dict(config))[:8]}.yaml"
    ours = commit()
    scripts = Scripts(config, request, folder, snapshot, f"fedscale {__version__}, {ours}, {snapshot.name}")
    texts = {stage: scripts.stage(stage) for stage in stages}  # a mistake in any, before a file is written
    files.write_text(snapshot, to_yaml(config))
    for stage, text in texts.items():
        files.write_text(scripts.path(stage), text)
    files.write_text(folder / CHAIN, scripts.chain(stages))
    told = {"commit": ours, "config": snapshot.name, "request": dataclasses.asdict(request)}
    files.write_json(folder / f"{request.stage}.json", {**told, "stages": stages, **environment(config)})
    return Submission(folder, stages, folder / CHAIN)


def submit(submission: Submission) -> list[dict[str, Any]]:
    """Hand the scripts in; stage, job number and script of each job. Raises UserError without sbatch, or a refusal."""
    if shutil.which("sbatch") is None:
        raise UserError("submit: no sbatch on this machine; use --print, and hand the scripts in where there is one")
    done = subprocess.run(["bash", str(submission.chain)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"submit: {refusal(done.stderr, 'no job was left behind')}")
    rows = [line.split() for line in done.stdout.splitlines()]
    jobs = [{"stage": stage, "job": job, "script": str(submission.script(stage))} for stage, job in rows]
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv, "jobs": jobs}
    files.append_jsonl(submission.folder / "submitted.jsonl", line)
    return jobs


def refusal(said: str, remedy: str) -> str:
    """Why sbatch took no job, of all that it said; `remedy` is that of a job which the controller refuses."""
    if fatal := re.search(r"fatal: (.*configuration.*)", said):  # the last of its lines, behind those of DNS
        return (
            f"sbatch knows no cluster ({fatal[1]}); set SLURM_CONF to the cluster's slurm.conf, or hand the scripts in "
            "where Slurm is configured"
        )
    return f"sbatch refused ({' '.join(said.split())}); {remedy}"


def _stages(config: Config, wanted: str) -> list[str]:
    """The jobs of a request in order, `prepare` first where there is something to prepare."""
    having = {stage for child in children(config) for stage in needed(child)} | {"report"}
    chosen = [stage for stage in STAGES if stage in having] if wanted == "pipeline" else [wanted]
    if missing := [stage for stage in chosen if stage not in having]:
        raise UserError(f"--stage={missing[0]}: no run of {config.name} has that stage; see enabled= in the config")
    return [*([] if chosen == ["report"] or is_prepared(config) else ["prepare"]), *chosen]


def commit() -> str:
    """The commit of the checkout that fedscale runs from, with a mark where files differ from it."""
    checkout = house.PACKAGE.parent
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return "installed, no checkout"
    git = ["git", "-C", str(checkout), "-c", "safe.directory=*"]
    found = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else "commit unknown"
