"""One module and its optimiser in training, under whatever strategy the launch asked for.

The one place that knows how DDP, FSDP2 and DeepSpeed differ: in how gradients of several backward passes add up, who
clips and steps, where a whole weight is to be had.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from fedscale.distributed.accelerator import forget_deepspeed, make_accelerator
from fedscale.distributed.batch_norm import synchronise_batch_norms
from fedscale.distributed.compile_lock import build_folder, release_dead_locks
from fedscale.distributed.launch import this_place
from fedscale.distributed.mesh import Mesh
from fedscale.distributed.state import load_state, save_state
from fedscale.distributed.strategy import asked_strategy
from fedscale.errors import UserError


class Training:
    """A module and its optimiser, prepared by Accelerate, on all ranks of `mesh`.

    `module` is what to call. A step is one or more `backward`, the last one with `last=True`, then `step`. A loss that
    goes into `backward` is this rank's addend: the gradient is that of the sum over ranks and backward passes.
    """

    def __init__(
        self,
        mesh: Mesh,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        mixed_precision: str = "no",
        micro_batch: int = 1,
        accumulation: int = 1,
        max_norm: float = 0.0,
        tracked: Path | None = None,
    ) -> None:
        """`micro_batch`: images a backward pass and rank; `max_norm`: gradients are clipped to it, 0 = not.

        Raises UserError when the strategy in force is not the launched one.
        """
        _check_covered(module, optimizer)
        units = repeated_blocks(module)
        self.mesh, self._accumulation, self._max_norm = mesh, accumulation, max_norm
        self._tracks = False
        if asked_strategy(os.environ) == "deepspeed":
            if this_place().local_rank == 0:
                release_dead_locks(build_folder())
            mesh.barrier("DeepSpeed's compiled operations")  # before any rank compiles them
        self.accelerator = make_accelerator(
            mesh.device, mixed_precision, units, micro_batch, accumulation, max_norm, tracked
        )
        self.strategy = asked_strategy(os.environ)  # `make_accelerator` has made sure that it is in force
        if mesh.world > 1:  # before the module is wrapped (DeepSpeed #502)
            module = _synchronised(module, mesh.device)
        self._plain = module  # accelerate's unwrap_model would import deepspeed, which takes seconds
        with warnings.catch_warnings():
            # torch 2.15 renames it; the name that accelerate knows is the one of all versions.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        forget_deepspeed()
        self._check_in_force()

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradient of this rank's addend; `last`: no other backward pass comes before the step."""
        scaled = loss * self.mesh.world  # every strategy takes the mean over ranks
        if self._deepspeed:
            self.module.set_gradient_accumulation_boundary(last)
            self.module.backward(scaled * self._accumulation)  # it divides by the number of backward passes
            return
        self.accelerator.backward(scaled)

    def passing(self, last: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass; without `last`, DDP need not reduce the gradients yet."""
        if self.strategy == "ddp" and not last:
            return self.accelerator.no_sync(self.module)
        return nullcontext()

    def step(self, lr: float) -> float | None:
        """Clip, update with the learning rate `lr`, forget the gradients; the gradients' norm where it is clipped."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._deepspeed:
            self.module.step()
            return float(self.module.get_global_grad_norm()) if self._max_norm else None
        norm = None
        if self._max_norm:
            norm = float(_whole(self.accelerator.clip_grad_norm_(self.module.parameters(), self._max_norm)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def average_buffers(self) -> None:
        """Set the running statistics, floating-point buffers all, to their means over the ranks."""
        if self.mesh.world == 1:
            return
        for name, buffer in self._plain.named_buffers():
            if buffer.is_floating_point() and name.rsplit(".", 1)[-1].startswith("running_"):
                mean = self.mesh.sum_over_clients(buffer.detach().double().contiguous()) / self.mesh.world
                buffer.copy_(mean)

    @torch.no_grad()
    def whole_state(self, part: nn.Module) -> dict[str, Tensor]:
        """Whole float32 weights and the buffers of a part of the module, on the CPU; every rank must call it."""
        state = {name: buffer.detach().cpu() for name, buffer in part.named_buffers()}
        for name, parameter in part.named_parameters():
            state[name] = self._whole_parameter(parameter).detach().cpu().clone()
        return {name: state[name] for name in part.state_dict() if name in state}

    def save(self, folder: Path) -> None:
        """Write the trainable weights, the buffers and the optimiser's state; every rank must call it."""
        if self._deepspeed:
            from fedscale.distributed.zero import save_engine

            save_engine(self.module, folder)
        else:
            save_state(folder, self.module, self.optimizer.optimizer)

    def load(self, folder: Path, saved: dict[str, Any]) -> None:
        """Load what `save` wrote under the strategy and number of ranks that `facts` told then (`saved`).

        Raises UserError for a checkpoint of DeepSpeed's under another strategy, or the other way round.
        """
        was_zero = saved.get("strategy") == "deepspeed"
        if was_zero != self._deepspeed:
            raise UserError(
                f"{folder.parent}: a checkpoint of {saved.get('strategy')}, {self.strategy} cannot go on from it; "
                "launch it as before (DDP and FSDP2 read each other's, any number of ranks too), or delete it"
            )
        if self._deepspeed:
            from fedscale.distributed.zero import load_engine

            load_engine(self.module, folder, self.mesh, saved)
        else:
            load_state(folder, self.module, self.optimizer.optimizer)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint should tell of how it was written."""
        stage = self.module.zero_optimization_stage() if self._deepspeed else None
        return {"strategy": self.strategy, "zero_stage": stage, "world": self.mesh.world}

    def parameter_bytes(self) -> int:
        """Bytes of parameters that this rank holds between steps."""
        held = 0
        for parameter in self._plain.parameters():
            tensor = getattr(parameter, "ds_tensor", None)
            tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter if tensor is None else tensor
            held += tensor.numel() * tensor.element_size()
        return held

    @contextmanager
    def tracking(self, name: str) -> Iterator[None]:
        """Within the block `track` writes event files for TensorBoard, where a folder for them was given."""
        self._tracks = bool(self.accelerator.log_with)
        if self._tracks:
            self.accelerator.init_trackers(name)
        try:
            yield
        finally:
            if self._tracks:
                self.accelerator.end_training()

    def track(self, values: dict[str, float], step: int) -> None:
        """Log the step's values, the main rank's."""
        if self._tracks:
            self.accelerator.log(values, step=step)

    @property
    def _deepspeed(self) -> bool:
        return self.strategy == "deepspeed"

    def _whole_parameter(self, parameter: nn.Parameter) -> Tensor:
        if self._deepspeed:
            from fedscale.distributed.zero import whole_parameter

            return whole_parameter(parameter)
        return _whole(parameter.data).float()

    def _check_in_force(self) -> None:
        """After the magic call: the strategy wraps what it should, where it should, and updates all that is trained.

        FSDP2 and DeepSpeed take the machine's GPU by themselves, also where the ranks were told to compute on CPUs.
        """
        asked = self.mesh.device.type
        held = [] if self._deepspeed else [*self._plain.parameters(), *self._plain.buffers()]
        found = {tensor.device.type for tensor in held} or {self.module.device.type}
        if found != {asked}:
            raise UserError(
                f"device={asked}: {self.strategy} put the weights on {', '.join(sorted(found))}; hide the GPUs "
                "(CUDA_VISIBLE_DEVICES=), or use device=auto"
            )
        if self.strategy == "fsdp2":
            wrapped = sum(isinstance(module, FSDPModule) for module in self._plain.modules())
            assert wrapped > 1, "FSDP2 wrapped the root alone: no block is gathered on its own"
            whole = [name for name, p in self._plain.named_parameters() if not isinstance(p, DTensor)]
            assert not whole, f"FSDP2 left {whole[:3]} whole"
        elif self._deepspeed:
            wanted = self.module.config["zero_optimization"]["stage"]
            assert self.module.zero_optimization_stage() == wanted, "another stage of ZeRO than configured"
            return  # its optimiser holds flat pieces of what `_check_covered` saw
        _check_covered(self._plain, self.optimizer)


def repeated_blocks(module: nn.Module) -> tuple[str, ...]:
    """The classes of the blocks that a model repeats, the outermost ones: what FSDP2 gathers one at a time.

    A block has submodules of its own and stands at least twice in the model: decoder layers, residual blocks.
    """
    counts = Counter(type(child) for child in module.modules() if _is_block(child))
    names: list[str] = []

    def visit(parent: nn.Module) -> None:
        for child in parent.children():
            if counts[type(child)] > 1 and _is_block(child):
                names.append(type(child).__name__)
            else:
                visit(child)

    visit(module)
    return tuple(dict.fromkeys(names))


def _synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with batch norms that see the batches of all ranks; torch's own refuses CPU tensors."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted
    synchronise_batch_norms(module, None)
    return module


def _is_block(module: nn.Module) -> bool:
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    parameters = any(True for child in module.children() for _ in child.parameters())
    return parameters and not isinstance(module, containers)


def _check_covered(module: nn.Module, optimizer: Any) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in held]
    assert not missing, f"trainable, but not in the optimiser: {missing[:3]}"


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
