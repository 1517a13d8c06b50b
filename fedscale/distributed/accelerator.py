"""One factory for Accelerate, over the ranks that a mesh has brought together.

On CPUs accelerate would ignore FSDP and DeepSpeed, so that its state is preset there (`_preset_for_cpus`): every
strategy is tested on two CPU processes that way.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedscale.distributed.launch import Place, this_place
from fedscale.distributed.strategy import asked_strategy, check_strategy
from fedscale.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(
    device: torch.device,
    mixed_precision: str,
    units: tuple[str, ...] = (),
    micro_batch: int = 1,
    accumulation: int = 1,
    max_norm: float = 0.0,
    tracked: Path | None = None,
) -> Accelerator:
    """An Accelerator on this kind of device, under the strategy that the launch asked for.

    What a launch config cannot know is given: `units`, the classes that FSDP2 wraps; `micro_batch`, a rank's images a
    backward pass, `accumulation` and `max_norm` (0 = no clipping) for DeepSpeed. `tracked`: a folder for TensorBoard.
    Raises UserError when the strategy in force is not the launched one.
    """
    place = this_place()
    _tell_torch(place)
    asked = asked_strategy(os.environ)
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # A process may train several stages after each other, each on process groups of its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cpu" and place.world > 1:
        _preset_for_cpus(asked)
    plugins: dict[str, Any] = {}
    if asked == "fsdp2":
        plugins["fsdp_plugin"] = _fsdp2(units, mixed_precision)
    elif asked == "deepspeed":
        plugins["deepspeed_plugin"] = _deepspeed(micro_batch, accumulation, max_norm)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=device.type == "cpu" and asked in ("single", "ddp"),
        log_with="tensorboard" if tracked else None,
        project_dir=tracked,
        # The buffers are the running statistics of batch norm, which are the same on all ranks already.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        **plugins,
    )
    check_strategy(asked, place.world, accelerator.distributed_type.value, accelerator.num_processes)
    if accelerator.device.type != device.type:
        raise UserError(f"device={device.type}: accelerate chose {accelerator.device}; launch it for {device.type}")
    return accelerator


def forget_deepspeed() -> None:
    """Once a model is prepared: transformers would make the process's next one in parts, as ZeRO-3 wants its own.

    It keeps the configuration of the last DeepSpeedPlugin, which accelerate keeps alive.
    """
    if "transformers.integrations.deepspeed" in sys.modules:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def _tell_torch(place: Place) -> None:
    """torch's own variables, which accelerate and deepspeed read, where srun has set only Slurm's."""
    if place.world == 1:
        return
    told = {
        "RANK": place.rank,
        "WORLD_SIZE": place.world,
        "LOCAL_RANK": place.local_rank,
        "LOCAL_WORLD_SIZE": place.local_world,
        "MASTER_ADDR": place.address,
        "MASTER_PORT": place.port,
    }
    for name, value in told.items():
        os.environ.setdefault(name, str(value))


def _preset_for_cpus(asked: str) -> None:
    """Have accelerate take FSDP2 and DeepSpeed on CPUs, over the gloo group that exists.

    For FSDP2 its state is told that the ranks are those of GPUs, which is all that it looks at; for DeepSpeed, that no
    CPU was asked for, which DeepSpeed finds out by itself.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ.pop("ACCELERATE_USE_CPU", None)  # `accelerate launch` sets it where it sees no GPU
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate sets a number of its own
    PartialState(cpu=True)
    if asked == "fsdp2":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _fsdp2(units: tuple[str, ...], mixed_precision: str) -> Any:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    # Accelerate's own would round the losses to bf16 on their way out, and add the ranks' gradients in it.
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    plugin = FullyShardedDataParallelPlugin(
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(units),
        mixed_precision_policy=half if mixed_precision == "bf16" else None,
        cpu_ram_efficient_loading=False,  # rank 0 alone would load, and a frozen model's buffers were lost
    )
    if plugin.fsdp_version != 2:
        raise UserError(f"fsdp_version={plugin.fsdp_version} in the launch config: expected 2")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise UserError(
            "fsdp_offload_params=true in the launch config: NCCL cannot sum the norm of gradients on a CPU; set it "
            "to false, or launch with launch/deepspeed/zero3_offload.json"
        )
    return plugin


def _deepspeed(micro_batch: int, accumulation: int, max_norm: float) -> Any:
    from accelerate import DeepSpeedPlugin

    plugin = DeepSpeedPlugin(zero3_init_flag=False)  # else transformers would cut up the teachers as well
    settings = plugin.deepspeed_config
    zero = settings.setdefault("zero_optimization", {})
    for section in (settings, zero):  # `auto` is for what accelerate reads off a loader or a language model's width
        for name in [name for name, value in section.items() if value == "auto"]:
            del section[name]
    settings.update(
        train_micro_batch_size_per_gpu=micro_batch,
        gradient_accumulation_steps=accumulation,
        gradient_clipping=max_norm,
        steps_per_print=2**31,  # progress is ours to tell
    )
    plugin.gradient_accumulation_steps = accumulation
    plugin.gradient_clipping = max_norm
    return plugin
