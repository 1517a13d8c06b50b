"""One factory for Accelerate, and the assertion that the strategy that was asked for is the one in force.

Accelerate falls back without a word: on a CPU it ignores FSDP and DeepSpeed, and without a GPU it may leave every rank
to train alone (PITFALLS D 27, 28). So the launch's wishes are compared with what was built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from fedscale.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

IN_FORCE = {  # Accelerate's DistributedType of each strategy
    "single": {"NO"},
    "ddp": {"MULTI_GPU", "MULTI_CPU"},
    "fsdp": {"FSDP"},
    "deepspeed": {"DEEPSPEED"},
}


def asked_strategy(environment: Mapping[str, str]) -> str:
    """What the launcher asked for, by the variables that `accelerate launch` and torchrun set: a key of IN_FORCE."""
    for strategy, variable in (("deepspeed", "ACCELERATE_USE_DEEPSPEED"), ("fsdp", "ACCELERATE_USE_FSDP")):
        if environment.get(variable, "false").lower() in ("1", "true", "yes"):
            return strategy
    return "ddp" if int(environment.get("WORLD_SIZE", "1")) > 1 else "single"


def make_accelerator(device: torch.device, mixed_precision: str) -> Accelerator:
    """An Accelerator on this kind of device. Raises UserError when the strategy in force is not the launched one."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # A process may train several stages after each other; the process group, if any, is kept.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu")
    check_strategy(
        asked_strategy(os.environ),
        int(os.environ.get("WORLD_SIZE", "1")),
        accelerator.distributed_type.value,
        accelerator.num_processes,
    )
    if accelerator.device.type != device.type:
        raise UserError(f"device={device.type}: accelerate chose {accelerator.device}; launch it for {device.type}")
    return accelerator


def check_strategy(asked: str, world: int, found: str, processes: int) -> None:
    """Raises UserError unless the distributed type and the number of processes are those asked for."""
    if found not in IN_FORCE[asked]:
        raise UserError(
            f"accelerate: {asked} was asked for, but {found} is in force; "
            "launch it on the device that this strategy needs, or ask for another one in the launch config"
        )
    if processes != world:
        raise UserError(f"accelerate: {world} processes were launched, but it sees {processes}; check the backend")


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set on any rank, the same answer on all of them (a signal may reach only one)."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)
