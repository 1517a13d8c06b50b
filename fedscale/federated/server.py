"""The server of a round: one sum over the ranks, the means, the method's update; no process of its own.

Where a method keeps vectors at the server, each rank keeps and updates its share of them: reduce-scatter, update,
all-gather move as many bytes as one all-reduce.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedscale.config.schema import AggregateConfig
from fedscale.distributed.mesh import Mesh
from fedscale.errors import UserError
from fedscale.federated.aggregation import Clip, clip_factors, lane_norms, make_accumulator
from fedscale.federated.backends.base import Trained
from fedscale.federated.flat import FlatLayout
from fedscale.federated.methods import Method, Server
from fedscale.federated.methods.base import zeros


class RoundSum:
    """What a rank's lanes add up to, as one persistent vector: parameters, uploads, statistics, reports, a record.

    Reports are the method's small uploads. The record is a vector of numbers of which every rank fills in its own, and
    which all know after the collective.
    """

    def __init__(
        self, layout: FlatLayout, mesh: Mesh, method: Method, record: int, settings: AggregateConfig, like: Tensor
    ) -> None:
        self.layout, self.mesh, self.method, self.settings = layout, mesh, method, settings
        self.sections = (1 + len(method.uploads)) * layout.num_parameters  # where the statistics begin
        self.statistics = self.sections + layout.size - layout.num_parameters  # where they end
        sizes = [math.prod(shape) for shape in method.reports.values()]
        self._reports = list(itertools.accumulate(sizes, initial=self.statistics))  # where each begins, and the end
        self.means = self._reports[-1]  # where the record begins
        kind = "exact" if settings.exact else settings.dtype
        self.accumulator = make_accumulator(kind, self.means + record, like.device, settings.fraction_bits)
        behind = self.sections - layout.num_parameters
        statistics = [entry.offset + behind for entry in layout.statistics]
        self._model_offsets = [entry.offset for entry in layout.parameters] + statistics
        self._entry_offsets = list(layout.offsets)

    def reset(self) -> None:
        """Begin a new round."""
        self.accumulator.reset()

    def add(self, trained: Trained, start: Tensor, weights: Tensor, equal: float) -> Tensor:
        """Add lanes with their `weights` [L] (float64) and their uploads and reports with weight `equal`.

        Returns which of them [L] are finite; the others are left out.
        """
        lanes, state = trained.plan.lanes, trained.state
        blocks = state.model.flat_blocks(0, lanes)
        clips = self.settings.clip_norm > 0
        norms = self._norms(blocks, start if clips else None)
        sent = [state.roles[role].flat_blocks(0, lanes) for role in self.method.uploads]
        told = [trained.reports[name].flatten(1) for name in self.method.reports]
        finite = norms.isfinite()
        for upload in sent:
            finite &= self.mesh.sum_over_shard(lane_norms(upload)).isfinite()
        for report in told:
            finite &= report.isfinite().all(1).cpu()
        clip = Clip(self._clip_start(start), clip_factors(norms, self.settings.clip_norm)) if clips else None
        kept = torch.where(finite, weights, 0.0)
        bounds = None if clips else torch.where(finite, norms, 0.0)
        self.accumulator.add(blocks, self._model_offsets, kept, clip=clip, bounds=bounds)
        for number, upload in enumerate(sent, start=1):
            offsets = [e.offset + number * self.layout.num_parameters for e in self.layout.parameters]
            self.accumulator.add(upload, offsets, finite.double() * equal)
        if told:
            self.accumulator.add(told, self._reports[:-1], finite.double() * equal)
        return finite

    def _norms(self, blocks: list[Tensor], start: Tensor | None) -> Tensor:
        """The lanes' L2 norms [L]; where clients are sharded, of the slices of all ranks together."""
        parameters, behind = len(self.layout.parameters), self._entry_offsets
        if self.mesh.shard == 1:
            return lane_norms(blocks, behind, start)
        squares = lane_norms(blocks[:parameters], behind[:parameters], start).square()
        squares = self.mesh.sum_over_shard(squares)
        if self.layout.statistics:
            squares += lane_norms(blocks[parameters:], behind[parameters:], start).square()
        return squares.sqrt()

    def _clip_start(self, start: Tensor) -> Tensor:
        """The global vector with its statistics where they lie in the sum."""
        moved = start.new_zeros(self.means)
        moved[: self.layout.num_parameters] = start[: self.layout.num_parameters]
        moved[self.sections : self.statistics] = start[self.layout.num_parameters :]
        return moved

    def mean(self, part: Tensor, weight: float, dtype: torch.dtype) -> Tensor:
        """The mean of a part of the vector, after the collective."""
        whole, self.accumulator.vector = self.accumulator.vector, part
        try:
            return self.accumulator.mean(weight, dtype)
        finally:
            self.accumulator.vector = whole

    def reports(self, weight: float) -> dict[str, Tensor]:
        """The means of the method's reports, float64 by name, after the collective."""
        if not self.method.reports:
            return {}
        parts = self.mean(self.accumulator.vector[self.statistics : self.means], weight, torch.float64)
        shapes = self.method.reports.items()
        split = parts.split([math.prod(shape) for _, shape in shapes])
        return {name: part.view(shape) for (name, shape), part in zip(shapes, split, strict=True)}

    def fill_record(self, numbers: Tensor) -> None:
        """Put this rank's numbers (float64, zeros where others fill in) behind the means."""
        place = self.accumulator.vector[self.means :]
        # Of an integer sum the bits of one number and zeros are the number.
        place.copy_(numbers.view(torch.int64) if place.dtype == torch.int64 else numbers)

    def record(self) -> Tensor:
        """The numbers of all ranks, float64 on the CPU, after the collective."""
        place = self.accumulator.vector[self.means :].cpu()
        return place.view(torch.float64) if place.dtype == torch.int64 else place.double()


class ServerState:
    """The global vector [size], the method's server vectors (this rank's share of each), and how a round moves them."""

    def __init__(self, layout: FlatLayout, method: Method, mesh: Mesh, vector: Tensor) -> None:
        self.layout, self.method, self.mesh, self.vector = layout, method, mesh, vector
        self.scattered = bool(method.server_state) and mesh.clients > 1
        share = self._share(vector.new_zeros(layout.num_parameters))
        self.state = {name: torch.zeros_like(share) for name in method.server_state}
        self.shared = zeros(method.shared, vector)  # the method's own tensors, the same on every rank

    def _share(self, parameters: Tensor) -> Tensor:
        """This rank's part of a vector of parameters, zeros behind the end."""
        if not self.scattered:
            return parameters
        rows = -(-len(parameters) // self.mesh.clients)
        first = self.mesh.client_index * rows
        part = parameters[first : first + rows]
        return torch.nn.functional.pad(part, (0, rows - len(part)))

    def whole(self, name: str) -> Tensor:
        """A server vector in full; every rank must ask for it."""
        part = self.state[name]
        return self.mesh.gather_over_clients(part, self.layout.num_parameters) if self.scattered else part

    def set_whole(self, name: str, vector: Tensor) -> None:
        """Give a server vector the values of a full one."""
        self.state[name].copy_(self._share(vector.to(self.state[name])))

    def broadcast(self) -> dict[str, Tensor]:
        """What the method sends to its clients beside the model."""
        return {name: self.whole(name) for name in self.method.broadcast}

    def broadcast_zeros(self) -> dict[str, Tensor]:
        """As `broadcast` was before the first round, on one rank alone."""
        return {name: self.vector.new_zeros(self.layout.num_parameters) for name in self.method.broadcast}

    def collect(self, total: RoundSum) -> list[Tensor]:
        """The collective: this rank's shares of the sums of parameters and uploads; the rest is summed in place."""
        vector, size = total.accumulator.vector, self.layout.num_parameters
        sections = [vector[at : at + size] for at in range(0, total.sections, size)]
        if not self.scattered:
            self.mesh.sum_over_clients(vector)
            return sections
        parts = [self.mesh.reduce_scatter_over_clients(section) for section in sections]
        self.mesh.sum_over_clients(vector[total.sections :])
        return parts

    def step(
        self,
        total: RoundSum,
        sections: Sequence[Tensor],
        weight: float,
        equal: float,
        facts: dict[str, Any],
    ) -> None:
        """The method's update with the means; `weight` and `equal` are the finite lanes' weights together.

        `facts` are what a `Server` tells a method of the round.
        """
        mean, dtype = total.mean, self.vector.dtype
        parameters = self.vector[: self.layout.num_parameters]
        server = Server(self._share(parameters), self.state, **facts)
        uploads = {name: mean(part, equal, dtype) for name, part in zip(self.method.uploads, sections[1:], strict=True)}
        renewed = self.method.server_step(server, mean(sections[0], weight, dtype), uploads)
        if renewed.shape != server.vector.shape:
            raise UserError(
                f"federate.method={self.method.config.method}: `server_step` gave {list(renewed.shape)}, expected the "
                f"parameters' {list(server.vector.shape)}"
            )
        if self.scattered:
            renewed = self.mesh.gather_over_clients(renewed.contiguous(), len(parameters))
        statistics = mean(total.accumulator.vector[total.sections : total.statistics], weight, dtype)
        self.vector = torch.cat([renewed, statistics])
