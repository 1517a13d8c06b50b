"""Which of how many this process is, whatever launched it: torchrun, accelerate, deepspeed, srun, a job array.

`this_worker` is for work that needs no messages (captioning: tasks of an array count), `this_place` for ranks that
reduce together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    are none, and for one process that accelerate was to start with others.
    """
    torch_like = _torch_like(environment)
    inner, inner_world = _rank(environment)
    task, tasks = _array(environment)
    rank, world = task * inner_world + inner, tasks * inner_world
    if not 0 <= rank < world:
        raise UserError(f"launcher: rank {rank} of {world} workers; expected less: check RANK and WORLD_SIZE")
    gaps = tasks > _number(environment, "SLURM_ARRAY_TASK_COUNT", tasks)
    return Worker(rank, world, _launch(environment, torch_like) if world > 1 else None, gaps)


@dataclass(frozen=True)
class Place:
    """Rank `rank` of `world`, number `local_rank` of the `local_world` ranks of its host.

    `address` and `port` are where the ranks meet, at rank 0; None and 0 alone. `hosted`: torchrun's agent listens there
    already; else rank 0 has to.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str | None = None
    port: int = 0
    hosted: bool = False


def this_place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place among the ranks that reduce together; alone without a launcher's variables.

    A task of a job array is a run of its own here. Raises UserError for numbers that are none, for ranks that are told
    nowhere to meet, and for one process that accelerate was to start with others.
    """
    rank, world = _rank(environment)
    if not 0 <= rank < world:
        raise UserError(f"launcher: rank {rank} of {world}; expected less: check RANK and WORLD_SIZE")
    if world == 1:
        return Place()
    if _torch_like(environment):
        if "MASTER_ADDR" not in environment:
            raise UserError(f"launcher: WORLD_SIZE={world}, but MASTER_ADDR is not set; set it to the host of rank 0")
        address, port = environment["MASTER_ADDR"], _number(environment, "MASTER_PORT")
    else:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        address = environment.get("MASTER_ADDR") or next(iter(slurm_hosts(nodes)), "")
        if not address:
            raise UserError("launcher: a Slurm step without SLURM_STEP_NODELIST; set MASTER_ADDR to the host of rank 0")
        port = _number(environment, "MASTER_PORT", _slurm_port(environment))
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    local_rank, local_world = on_this_host(environment)
    return Place(rank, world, local_rank, local_world, address, port, hosted)


def sharing(count: int, environment: Mapping[str, str] = os.environ, of: Literal["CPUS", "GPUS"] = "CPUS") -> int:
    """How many ranks of this host compute on the `count` cores, or GPUs, of this process: 1 where it has them alone."""
    _, local_world = on_this_host(environment)
    # srun may bind each task to cores of its own; then those of all tasks together are no more than the step's.
    bound = not _torch_like(environment) and count * local_world <= _number(environment, f"SLURM_{of}_ON_NODE", 0)
    return 1 if bound else local_world


def on_this_host(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, number of ranks) on this host; (0, 1) where nothing tells, as far as the environment goes."""
    _, world = _rank(environment)
    if world == 1:
        return 0, 1
    if _torch_like(environment):
        name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environment else "LOCAL_SIZE"  # the latter is deepspeed's
        return _number(environment, "LOCAL_RANK", 0), _number(environment, name, 1)
    counts: list[int] = []  # SLURM_STEP_TASKS_PER_NODE is like 4(x2),3
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = _number(environment, "SLURM_NODEID", 0)
    return _number(environment, "SLURM_LOCALID", 0), counts[node] if node < len(counts) else 1


def slurm_hosts(nodes: str) -> list[str]:
    """The hosts of a Slurm node list in its order: `n[01-03,7],m` is n01, n02, n03, n7, m."""
    hosts: list[str] = []
    for name in re.findall(r"(?:\[[^]]*\]|[^,\[])+", nodes):
        heads = [""]
        for literal, inside in re.findall(r"([^\[]+)|\[([^]]*)\]", name):
            tails = [literal] if literal else [item for part in inside.split(",") for item in _span(part)]
            heads = [head + tail for head in heads for tail in tails]
        hosts += heads
    return hosts


def _span(part: str) -> list[str]:
    first, _, last = part.partition("-")
    return [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)] if last else [first]


def _slurm_port(environment: Mapping[str, str]) -> int:
    """A port below those that the kernel hands out, the same in all tasks of a step and another in the next job."""
    job, step = _number(environment, "SLURM_JOB_ID", 0), _number(environment, "SLURM_STEP_ID", 0)
    return 15_000 + (16 * job + step) % 16_000


def _torch_like(environment: Mapping[str, str]) -> bool:
    return "RANK" in environment and "WORLD_SIZE" in environment


def _rank(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, world) by torch's variables or those of a Slurm step; (0, 1) without."""
    if _torch_like(environment):
        return _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        # In the shell that salloc opens SLURM_NTASKS is what the job may start; the step's own number is 1 there.
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
        return _number(environment, "SLURM_PROCID"), _number(environment, tasks)
    _refuse_one_of_many(environment)
    return 0, 1


def _refuse_one_of_many(environment: Mapping[str, str]) -> None:
    """Raises UserError where accelerate was asked for several processes, or machines, and started a lone one.

    That it does without a word for `--cpu`, for `distributed_type: "NO"`, and for no config file where there are not
    several GPUs (`simple_launcher` of accelerate/commands/launch.py). What tells is the meeting place of several, which
    it still sets (`prepare_simple_launcher_cmd_env`), without a rank.
    """
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise UserError(
            "launcher: accelerate was asked for several processes and started this one alone; leave --cpu out and give "
            "it --config_file launch/accelerate/ddp.yaml, or use torchrun (for a single process: unset MASTER_ADDR)"
        )


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
