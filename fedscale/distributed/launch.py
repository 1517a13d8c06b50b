"""Which of how many workers this process is, whatever launched it: torchrun, accelerate, deepspeed, srun, an array."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fedscale.errors import UserError


@dataclass(frozen=True)
class Worker:
    """Worker `rank` of `world`. `launch` names this launch, the same for all its workers; None where nothing tells.

    `gaps`: some of the ranks do not exist, in a job array like 1,5,9.
    """

    rank: int = 0
    world: int = 1
    launch: str | None = None
    gaps: bool = False


def this_worker(environment: Mapping[str, str] = os.environ) -> Worker:
    """The worker that the launcher's variables make of this process; alone without any.

    torchrun, accelerate and deepspeed set RANK and WORLD_SIZE; srun sets SLURM_PROCID and SLURM_NTASKS in each task,
    and sbatch too in its script, where they mean nothing: there SLURM_STEP_ID is missing. Tasks of a job array count as
    workers beside one another, each with the workers that were launched inside it. Raises UserError for numbers that
    are none.
    """
    torch_like = "RANK" in environment and "WORLD_SIZE" in environment
    slurm_step = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    if torch_like:
        inner, inner_world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    elif slurm_step:
        inner, inner_world = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")
    else:
        inner, inner_world = 0, 1
    task, tasks = _array(environment)
    rank, world = task * inner_world + inner, tasks * inner_world
    if not 0 <= rank < world:
        raise UserError(f"launcher: rank {rank} of {world} workers; expected less: check RANK and WORLD_SIZE")
    gaps = tasks > _number(environment, "SLURM_ARRAY_TASK_COUNT", tasks)
    return Worker(rank, world, _launch(environment, torch_like) if world > 1 else None, gaps)


def _array(environment: Mapping[str, str]) -> tuple[int, int]:
    """(position, count) of this task in its job array; `--array=3-9:2` has positions 0 to 3."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
    step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
    position = (_number(environment, "SLURM_ARRAY_TASK_ID") - first) // max(1, step)
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT", position + 1)
    # Of an array like 1,5,9 Slurm tells no step: then the last position says how many there may be.
    last = (_number(environment, "SLURM_ARRAY_TASK_MAX", first) - first) // max(1, step)
    return position, max(count, last + 1)


def _launch(environment: Mapping[str, str], torch_like: bool) -> str | None:
    """A name that all workers of this launch know and no other launch has; None where there is none.

    A requeued job or task keeps it, and so does a restart by torchrun: they go on with the same launch. torchrun's own
    id is `none` unless `--rdzv-id` or `--standalone` is given; then nothing tells two launches apart.
    """
    if job := environment.get("SLURM_ARRAY_JOB_ID"):
        return f"slurm-{job}"
    if job := environment.get("SLURM_JOB_ID"):
        return f"slurm-{job}-{environment.get('SLURM_STEP_ID', 'batch')}"
    run = environment.get("TORCHELASTIC_RUN_ID", "none")
    return f"torchrun-{run}" if torch_like and run != "none" else None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise UserError(f"launcher: the variable {name} is {text!r}; expected a whole number") from None
