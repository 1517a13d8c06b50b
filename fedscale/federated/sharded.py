"""Clients larger than a device: one client's model cut over the ranks of a shard row by FSDP2.

Each rank of a row trains on its part of the client's batch, holds its slice of every parameter, and adds up and updates
that slice alone. Batch norm takes the statistics of the whole batch. What comes out is what one rank would get.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fedscale.config.schema import FederateConfig
from fedscale.distributed.batch_norm import SyncedBatchNorm, synchronise_batch_norms
from fedscale.distributed.mesh import Mesh
from fedscale.federated.backends.base import Interrupted, RoundStart, Trained
from fedscale.federated.backends.optimise import descend
from fedscale.federated.backends.trainer import broadcast_blocks, checked_losses, fill_roles
from fedscale.federated.clients import Clients
from fedscale.federated.data import RoundData, StagedGroup
from fedscale.federated.flat import Entry, FlatLayout, placed
from fedscale.federated.lanes.state import Blocks, LaneState, LaneView
from fedscale.federated.methods import Batch, Method
from fedscale.federated.methods.base import zeros
from fedscale.federated.plan import GroupPlan


class ShardedModel:
    """`model` cut over the mesh's shard axis; its slice's layout, and how slices and whole vectors become each other.

    Dimension 0 of a parameter is dealt out in equal contiguous pieces, as FSDP2 does it; statistics are on every rank.
    """

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        self.whole_layout, self.mesh = FlatLayout.of(model), mesh
        self._counters = [(b, b.clone()) for b in model.buffers() if not b.is_floating_point()]
        row = mesh.device_mesh["shard"]
        synchronise_batch_norms(model, row.get_group())
        units = [child for child in model.children() if any(True for _ in child.parameters())]
        for unit in units:
            fully_shard(unit, mesh=row)
        fully_shard(model, mesh=row)
        self.model = model
        trained = dict(model.named_parameters())
        assert all(isinstance(p, DTensor) for p in trained.values()), "fully_shard left a parameter whole"
        self.parameters = {e.name: cast(DTensor, trained[e.name]) for e in self.whole_layout.parameters}
        buffers = dict(model.named_buffers())
        self.statistics = {e.name: buffers[e.name] for e in self.whole_layout.statistics}
        parameters, size = placed({name: p.to_local() for name, p in self.parameters.items()}, 0)
        statistics, total = placed(self.statistics, size)
        self.layout = FlatLayout(parameters, statistics, size, total)

    @property
    def num_bytes(self) -> int:
        """Of the parameters that this rank holds between steps."""
        return sum(p.to_local().numel() * p.to_local().element_size() for p in self.parameters.values())

    def tensors(self) -> dict[str, Tensor]:
        """This rank's slices of the parameters, and the statistics, as the model computes with them."""
        return {name: p.to_local() for name, p in self.parameters.items()} | self.statistics

    @torch.no_grad()
    def load(self, vector: Tensor) -> None:
        """Make the model's state equal to this rank's `vector` (of `layout`)."""
        own = self.tensors()
        for name, value in self.layout.views(vector).items():
            own[name].copy_(value)
        for counter, initial in self._counters:
            counter.copy_(initial)

    @torch.no_grad()
    def read(self) -> Tensor:
        """The model's state as this rank's vector."""
        own, vector = self.tensors(), next(iter(self.statistics.values()), None)
        like = next(iter(own.values())) if vector is None else vector
        out = like.new_zeros(self.layout.size)
        for name, view in self.layout.views(out).items():
            view.copy_(own[name])
        return out

    @torch.no_grad()
    def slice_of(self, whole: Tensor) -> Tensor:
        """This rank's slice of a vector of `whole_layout` (or of its parameters alone)."""
        parameters_only = len(whole) == self.whole_layout.num_parameters
        own = whole.new_zeros(self.layout.num_parameters if parameters_only else self.layout.size)
        pairs = zip(self.whole_layout.parameters, self.layout.parameters, strict=True)
        for entry, piece in pairs:
            begin = entry.offset + self._first(entry)
            own[piece.offset : piece.offset + piece.numel] = whole[begin : begin + piece.numel]
        if not parameters_only:
            own[self.layout.num_parameters :] = whole[self.whole_layout.num_parameters :]
        return own

    @torch.no_grad()
    def whole_of(self, own: Tensor) -> Tensor:
        """The inverse, on the CPU; every rank of the row must ask for it. One parameter is gathered at a time."""
        parameters_only = len(own) == self.layout.num_parameters
        layout = self.whole_layout
        whole = torch.zeros(layout.num_parameters if parameters_only else layout.size, dtype=own.dtype)
        for entry, piece in zip(layout.parameters, self.layout.parameters, strict=True):
            rows = self._rows(entry)
            padded = own.new_zeros(rows * (entry.numel // max(1, entry.shape[0])))
            padded[: piece.numel] = own[piece.offset : piece.offset + piece.numel]
            pieces = self.mesh.gather_over_shard(padded)
            whole[entry.offset : entry.offset + entry.numel] = pieces[: entry.numel].cpu()
        if not parameters_only:
            whole[layout.num_parameters :] = own[self.layout.num_parameters :].cpu()
        return whole

    def _rows(self, entry: Entry) -> int:
        return -(-entry.shape[0] // self.mesh.shard)

    def _first(self, entry: Entry) -> int:
        """Where this rank's piece begins inside the entry, in elements."""
        rows = min(self._rows(entry) * self.mesh.shard_index, entry.shape[0])
        return rows * (entry.numel // max(1, entry.shape[0]))


class ShardedBackend:
    """One client after another, each on all ranks of the row."""

    name = "sharded"
    lanes = 1

    def __init__(
        self, sharded: ShardedModel, like: Tensor, method: Method, settings: FederateConfig, data: RoundData
    ) -> None:
        self.sharded, self.method, self.settings, self.data = sharded, method, settings, data
        roles = {*method.roles, *(["momentum"] if settings.momentum else [])}
        self.state = LaneState(sharded.layout, 1, like, sorted(roles))
        self._view = _SliceView(self.state, sharded)
        self._row = like.new_zeros(sharded.layout.num_parameters)

    def train(self, start: RoundStart, plan: GroupPlan) -> Iterator[Trained]:
        for lane in range(plan.lanes):
            yield self._client(start, plan.part(lane, lane + 1))

    @torch.no_grad()
    def _client(self, start: RoundStart, plan: GroupPlan) -> Trained:
        staged = self.data.stage(plan)
        self.sharded.load(start.vector)
        self.sharded.model.train()
        fill_roles(self.state, self.method, start, plan, self._row)
        clients = self._clients(start, plan, staged)
        self.method.init(clients)
        start.begun()
        total = torch.zeros(1, dtype=torch.float64, device=self._row.device)
        for step in range(plan.steps[0]):
            # A stop must be the row's: one rank alone would leave the others waiting in the next layer.
            if self.sharded.mesh.sum_over_shard(torch.tensor([float(start.interrupted())])) > 0:
                raise Interrupted
            total += self._step(staged, clients, step, int(plan.counts[step, 0]))
        self.method.final(clients)
        own = self.sharded.tensors()
        for name, block in self.state.model.blocks().items():
            block[0].copy_(own[name])
        return Trained(plan, self.state, self.sharded.mesh.sum_over_shard(total) / clients.steps)

    def _clients(self, start: RoundStart, plan: GroupPlan, staged: StagedGroup) -> Clients:
        """The one client as a method sees it."""
        method, like = self.method, self._row

        def judged(images: Tensor) -> Tensor:
            raise AssertionError("no method that judges by clients' models is run with sharded ones")

        return Clients(
            plan,
            self.data,
            staged,
            start.model,
            method.problem.num_classes,
            start.shared,
            {},
            self._view,
            broadcast_blocks(self.sharded.layout, start),
            zeros(method.tallies, like, 1),
            judged,
            None,
            torch.tensor(plan.steps, dtype=torch.float64, device=like.device),
        )

    def _step(self, staged: StagedGroup, clients: Clients, step: int, size: int) -> Tensor:
        """One optimiser step on this rank's part of the batch; returns its share of the batch's mean loss."""
        mesh, model = self.sharded.mesh, self.sharded.model
        images, labels = self.data.batch(staged, step, 0, 1, size, channels_last=False, dtype=self._row.dtype)
        mine = torch.arange(mesh.shard_index, size, mesh.shard, device=labels.device)
        counted = torch.ones(max(1, len(mine)), dtype=self._row.dtype, device=labels.device)
        if not len(mine):  # FSDP needs every rank in every step: one sample that counts for nothing
            mine, counted = mine.new_zeros(1), counted.zero_()
        for module in model.modules():
            if isinstance(module, SyncedBatchNorm):
                module.counted = counted
        with torch.enable_grad():
            batch = Batch(model(images[mine, 0])[None], labels[:, mine], clients.tallies, clients.shared)
            losses = checked_losses(self.method, batch)[0] * counted
            # FSDP averages gradients over the row; with this factor that is the gradient of the batch's mean.
            (losses.sum() * (mesh.shard / size)).backward()
        gradients = Blocks(self._gradient(p)[None] for p in self.sharded.parameters.values())
        descend(self.method, self._view, gradients)
        model.zero_grad(set_to_none=True)
        self.method.stepped(clients.tallies)
        return losses.detach().double().sum()[None] / size

    @staticmethod
    def _gradient(parameter: DTensor) -> Tensor:
        if parameter.grad is None:
            return torch.zeros_like(parameter.to_local())
        return cast(DTensor, parameter.grad).to_local()


class _SliceView(LaneView):
    """A lane whose parameters are the model's own slices."""

    def __init__(self, state: LaneState, sharded: ShardedModel) -> None:
        super().__init__(state, 0, 1)
        self._sharded = sharded

    @property
    def parameters(self) -> Blocks:
        return Blocks(p.to_local()[None] for p in self._sharded.parameters.values())

    @parameters.setter
    def parameters(self, blocks: Blocks) -> None:
        """LaneView sets those of the buffer, which are not what the model computes with."""
