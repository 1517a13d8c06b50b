"""From a config's words, a backend and K, to the backend: the form of the model, the trainer, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.backends.base import Backend
from fedscale.federated.backends.batched import BatchedBackend
from fedscale.federated.backends.graph import CompiledTrainer, GraphTrainer
from fedscale.federated.backends.loop import LoopBackend
from fedscale.federated.backends.memory import free_bytes, lane_bytes
from fedscale.federated.backends.trainer import LaneTrainer
from fedscale.federated.data import RoundData
from fedscale.federated.flat import FlatLayout
from fedscale.federated.lanes.check import batched_form, single_form
from fedscale.federated.lanes.convert import Form
from fedscale.federated.lanes.layers import Unsupported
from fedscale.federated.methods import Method


@dataclass(frozen=True)
class Workshop:
    """What backends are made from. `say` takes a line for the log; `round_lanes`: clients of a round and rank."""

    model: nn.Module
    layout: FlatLayout
    like: Tensor
    method: Method
    settings: FederateConfig
    data: RoundData
    round_lanes: int
    say: Callable[[str], None]

    def make(self, backend: str, lanes: int) -> Backend:
        """The backend. A model that it cannot run goes to `loop`, which is said; UserError where K does not fit."""
        shape = self.data.image_shape
        if backend == "loop":
            form, reason = single_form(self.model, shape)
            if reason:
                self.say(f"federate: the model trains as it is, client by client ({reason})")
            return LoopBackend(self._trainer(LaneTrainer, form, 1))
        try:
            form, reason = batched_form(self.model, shape)
        except Unsupported as unsupported:
            self.say(f"federate.backend={backend}: no other backend than loop can run this model ({unsupported})")
            return self.make("loop", 1)
        if reason:
            self.say(f"federate.backend={backend}: through torch.func.vmap ({reason})")
        kind = LaneTrainer if backend == "batched" else GraphTrainer if self.on_gpu else CompiledTrainer
        self._check_fits(lanes)
        return BatchedBackend(lambda k: self._trainer(kind, form, k), lanes, backend, self.settings.aggregate.exact)

    @property
    def on_gpu(self) -> bool:
        return self.like.device.type == "cuda"

    def _trainer(self, kind: type[LaneTrainer], form: Form, lanes: int) -> LaneTrainer:
        return kind(form, self.layout, lanes, self.like, self.method, self.settings, self.data)

    def needed_bytes(self, lanes: int) -> int:
        """Bytes of the lanes' buffers and of a backward pass's gradients."""
        return lanes * lane_bytes(self.layout, self.method, self.settings, self.like.element_size())

    def _check_fits(self, lanes: int) -> None:
        needed, free = self.needed_bytes(lanes), free_bytes(self.like.device)
        if needed > free * self.settings.memory:
            fits = max(1, int(free * self.settings.memory) // self.needed_bytes(1))
            raise UserError(
                f"federate.lanes={lanes}: needs {needed / 2**30:.1f} GiB, expected at most {self.settings.memory:.0%} "
                f"of the {free / 2**30:.1f} GiB that are free; at most federate.lanes={fits}, or raise federate.memory"
            )

    def fits(self, *lanes: int) -> bool:
        """Whether backends of so many lanes fit into the memory that may be used, together."""
        needed = sum(self.needed_bytes(each) for each in lanes)
        return needed <= free_bytes(self.like.device) * self.settings.memory
