"""How far a sweep is, read off its folder alone; nothing is created."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from fedscale import files
from fedscale.lease import Leases
from fedscale.runs import RunFolder, StageFolder, stage_inputs
from fedscale.stages import needed
from fedscale.sweep.plan import Sweep, SweepRun

FAILED = "failed.json"


def complete(run: SweepRun) -> bool:
    """Whether all stages of the run are, with this very config."""
    folder, config = RunFolder.of(run.config), run.config
    return (folder.path / "config.yaml").exists() and all(
        StageFolder(folder.stage(stage), stage_inputs(config, stage)).complete for stage in reversed(needed(config))
    )


def failure(run: SweepRun) -> str:
    """Why the run diverged, when it did with this very config; else ''."""
    path = RunFolder.of(run.config).path / FAILED
    if not path.exists():
        return ""
    found = files.read_json(path)
    return str(found["error"]) if found["fingerprint"] == _fingerprint(run) else ""


def note_failure(run: SweepRun, error: Exception) -> None:
    """Keep why the run diverged, so that it is not tried again and again."""
    files.write_json(RunFolder.of(run.config).path / FAILED, {"error": str(error), "fingerprint": _fingerprint(run)})


def leases_of(sweep: Sweep) -> Leases:
    """The leases of the sweep's workers."""
    return Leases(sweep.folder / "locks", sweep.config.heartbeat)


def lease_name(run: SweepRun) -> str:
    """Of the lease whose owner works on the run."""
    return f"run.{run.name.replace('/', '.')}"


def owners(sweep: Sweep) -> dict[str, str]:
    """By the leases' names, who works on what; one that died less than six heartbeats ago is among them."""
    locks = sweep.folder / "locks"
    return leases_of(sweep).owners([path.name for path in locks.iterdir()] if locks.is_dir() else [])


def state(run: SweepRun, held: dict[str, str]) -> str:
    """`done`, `failed`, `running`, `waits` (for the tuning), `begun` or `open`."""
    if complete(run):
        return "done"
    if lease_name(run) in held:
        return "running"
    if failure(run):
        return "failed"
    if run.after:
        return "waits"
    return "begun" if (RunFolder.of(run.config).path / "config.yaml").exists() else "open"


def listed(sweep: Sweep, runs: Iterable[SweepRun]) -> list[dict[str, Any]]:
    """A row for each run, for the list."""
    held = owners(sweep)
    return [
        {
            "number": run.number,
            "run": run.name,
            "kind": run.kind,
            "method": run.method,
            "seed": run.config.seed,
            "point": run.point,
            "values": run.values,
            "state": state(run, held),
            "note": held.get(lease_name(run), "") or failure(run),
        }
        for run in runs
    ]


def counted(rows: list[dict[str, Any]]) -> str:
    """The states of a list, in words."""
    return ", ".join(f"{number} {name}" for name, number in Counter(row["state"] for row in rows).items())


def _fingerprint(run: SweepRun) -> str:
    return files.fingerprint(stage_inputs(run.config, needed(run.config)[-1]))
