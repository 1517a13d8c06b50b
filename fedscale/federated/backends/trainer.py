"""Local training of L clients side by side: the steps of a plan, on a form of the model, with a method's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedscale.errors import UserError
from fedscale.federated.backends.base import Interrupted, RoundStart, Trained
from fedscale.federated.backends.optimise import descend
from fedscale.federated.clients import Clients
from fedscale.federated.kept import put_kept, take_kept
from fedscale.federated.lanes.direct import Sink
from fedscale.federated.lanes.state import Blocks, LaneState, LaneView
from fedscale.federated.methods.base import Batch, zeros
from fedscale.federated.plan import GroupPlan

if TYPE_CHECKING:
    from fedscale.config.schema import FederateConfig
    from fedscale.federated.data import RoundData, StagedGroup
    from fedscale.federated.flat import FlatLayout
    from fedscale.federated.lanes.convert import Form
    from fedscale.federated.methods import Method


class LaneTrainer:
    """Trains up to `lanes` clients at once, SGD with the method's terms; keeps its buffers from group to group."""

    compiled = False

    def __init__(
        self,
        form: Form,
        layout: FlatLayout,
        lanes: int,
        like: Tensor,
        method: Method,
        settings: FederateConfig,
        data: RoundData,
    ) -> None:
        self.form, self.method, self.settings, self.data = form, method, settings, data
        self.layout = layout
        roles = {*method.roles, *(["momentum"] if settings.momentum else [])}
        self.state = LaneState(layout, lanes, like, sorted(roles), method.models)
        self.tallies, self.reports = zeros(method.tallies, like, lanes), zeros(method.reports, like, lanes)
        self.shared = zeros(method.shared, like)  # of the round at hand; in one place, as captured steps want it
        self.plain = not method.adjusts and not settings.momentum and not settings.weight_decay
        self._like, self._row = like, like.new_zeros(row_size(method, layout))
        # Weight gradients of linear layers go straight into the weights (plain SGD), or into a buffer of their own.
        direct = form.single_linears if like.device.type == "cpu" and not self.compiled else set()
        form.lanes.sink, form.lanes.direct = Sink(settings.lr if self.plain else None), direct
        buffered = set() if self.plain else direct
        self._direct = {e.name: like.new_zeros(lanes, *e.shape) for e in layout.parameters if e.name in buffered}
        self._autocast = settings.precision == "bf16" and like.device.type == "cuda"

    @torch.no_grad()
    def train(self, start: RoundStart, plan: GroupPlan) -> Trained:
        """Train the plan's clients from the global vector. Raises Interrupted when a stop is asked for."""
        staged = self.data.stage(plan)
        clients = self.begin(start, plan, staged)
        start.begun()
        losses = torch.zeros(plan.lanes, dtype=torch.float64, device=self._like.device)
        for step in range(plan.steps[0]):
            if start.interrupted():
                raise Interrupted
            for first, stop, size in plan.runs(step):
                losses[first:stop] += self.step(staged, self.state.view(first, stop), step, size)
        return self.end(clients, losses)

    def begin(self, start: RoundStart, plan: GroupPlan, staged: StagedGroup) -> Clients:
        """Fill the buffers for the plan's clients."""
        self.state.model.fill(start.vector)
        fill_roles(self.state, self.method, start, plan, self._row)
        for tensor in (*self.tallies.values(), *self.reports.values()):
            tensor.zero_()
        if start.kept is not None:
            put_kept(self.method, self.tallies, start.kept[list(plan.clients)])
        for name, tensor in self.shared.items():
            tensor.copy_(start.shared[name])
        view = self.state.view(0, plan.lanes)
        clients = Clients(
            plan,
            self.data,
            staged,
            start.model,
            self.method.problem.num_classes,
            self.shared,
            {name: report[: plan.lanes] for name, report in self.reports.items()},
            view,
            broadcast_blocks(self.layout, start),
            {name: tally[: plan.lanes] for name, tally in self.tallies.items()},
            lambda images: self._judged(view.tensors, images.unsqueeze(1).expand(-1, plan.lanes, -1, -1, -1))[1],
            start.pool,
            torch.tensor(plan.steps, dtype=torch.float64, device=self._like.device),
        )
        self.method.init(clients)
        return clients

    def end(self, clients: Clients, losses: Tensor) -> Trained:
        """The method's last word, and the lanes as they are now."""
        self.method.final(clients)
        kept = take_kept(self.method, self.tallies, clients.plan.lanes)
        return Trained(clients.plan, self.state, losses / clients.steps, clients.reports, kept)

    @torch.no_grad()
    def _judged(self, tensors: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Features and logits of images [B, L, C, H, W], in evaluation mode."""
        return self.form.judged(tensors, images)

    def step(self, staged: StagedGroup, view: LaneView, step: int, size: int) -> Tensor:
        """One optimiser step of a run of lanes, `size` samples each; returns their losses [L]."""
        rows = staged.rows[step, view.start : view.stop, :size]
        return self.compute(staged, rows, staged.augment_keys, staged.dropout_keys, view, step)

    def compute(
        self,
        staged: StagedGroup,
        rows: Tensor,
        augment_keys: Tensor,
        dropout_keys: Tensor,
        view: LaneView,
        step: int | Tensor,
    ) -> Tensor:
        """`step` as tensor code alone: gather, augment, forward, backward, update; keys [K], `rows` [L, B]."""
        lanes = slice(view.start, view.stop)
        images, labels = self.data.gathered(
            staged, rows, augment_keys[lanes], step, self.form.channels_last, self._like.dtype, bool(self.method.views)
        )
        form = self.form
        form.lanes.dropout_keys, form.lanes.step = dropout_keys[lanes], step
        if self._direct:
            form.lanes.gradients = {name: buffer[lanes] for name, buffer in self._direct.items()}
        side = {name: staged.side[name][rows] for name in self.method.sides}
        with torch.enable_grad():
            losses = self.losses(view, images, labels, side)
        self.update(view, losses)
        if self.tallies:
            self.method.stepped({name: tally[lanes] for name, tally in self.tallies.items()})
        return losses.detach()

    def losses(self, view: LaneView, images: Tensor, labels: Tensor, side: dict[str, Tensor]) -> Tensor:
        """Each lane's mean loss [L] on its batch; the views of `Method.views` lie behind the images themselves."""
        method, lanes, dtype = self.method, slice(view.start, view.stop), self._like.dtype
        size = labels.shape[1]
        features = None
        with torch.autocast(self._like.device.type, torch.bfloat16, enabled=self._autocast):
            if method.uses_features:
                features, logits = self.form.outputs(view, images)
                features = features.to(dtype)
            else:
                logits = self.form.logits(view, images)
            others = {role: self._judged(view.model(role), images[:size])[0] for role in method.compares}
        first, *views = logits.to(dtype).split(size, dim=1)
        batch = Batch(
            first,
            labels,
            {name: tally[lanes] for name, tally in self.tallies.items()},
            self.shared,
            side,
            None if features is None else features[:, :size],
            {role: found.to(dtype) for role, found in others.items() if found is not None},
            dict(zip(method.views, views, strict=True)),
        )
        return checked_losses(method, batch).mean(1)

    @torch.no_grad()
    def update(self, view: LaneView, losses: Tensor) -> None:
        """Backward, and the optimiser's step."""
        with torch.enable_grad():
            # Direct layers' weights are asked for too, though None comes back: it is what makes backward visit them.
            found = torch.autograd.grad(losses.sum(), view.parameters, allow_unused=True)
        if self.plain:
            moved = [(p, g) for p, g in zip(view.parameters, found, strict=True) if g is not None]
            torch._foreach_add_([p for p, _ in moved], [g for _, g in moved], alpha=-self.settings.lr)
            return
        direct = self.form.lanes.gradients
        gradients = Blocks(
            direct[entry.name]
            if entry.name in direct
            else torch.zeros_like(parameter)
            if gradient is None
            else gradient
            for entry, parameter, gradient in zip(self.layout.parameters, view.parameters, found, strict=True)
        )
        _disentangle(gradients)
        descend(self.method, view, gradients)


def _disentangle(gradients: Blocks) -> None:
    """Copy gradients that share memory, as those of p and q in p + q may, or are one number for many elements."""
    seen: set[int] = set()
    for i, gradient in enumerate(gradients):
        memory = gradient.untyped_storage().data_ptr()
        if memory in seen or 0 in gradient.stride():
            gradients[i] = gradient.clone(memory_format=torch.contiguous_format)
        seen.add(memory)


def fill_roles(state: LaneState, method: Method, start: RoundStart, plan: GroupPlan, row: Tensor) -> None:
    """What lanes hold beside their models at a client's start; `row` [parameters] is used to carry clients' rows."""
    for role, buffer in state.roles.items():
        if role == "start":
            buffer.fill(start.vector)
        elif role in method.client_state:
            assert start.clients is not None, f"{method.name} needs a store of client state"
            for lane, client in enumerate(plan.clients):
                known = start.clients.read(client, role, row)
                buffer.set_lane(lane, row if known or role not in method.models else start.vector)
        elif role == "momentum":
            buffer.data.zero_()


def checked_losses(method: Method, batch: Batch) -> Tensor:
    """The method's loss of each sample. Raises UserError where it is of another shape."""
    losses = method.loss(batch)
    if losses.shape != batch.labels.shape:
        raise UserError(
            f"federate.method={method.config.method}: `loss` gave {list(losses.shape)}, expected one of each sample, "
            f"[lanes, batch] = {list(batch.labels.shape)}"
        )
    return losses


def row_size(method: Method, layout: FlatLayout) -> int:
    """Elements of a client's row: of a whole model where the method keeps one."""
    return layout.size if set(method.models) & set(method.client_state) else layout.num_parameters


def broadcast_blocks(layout: FlatLayout, start: RoundStart) -> dict[str, Blocks]:
    """The server's vectors as blocks [1, *shape], one a parameter."""
    views = {role: layout.views(vector) for role, vector in start.broadcast.items()}
    return {role: Blocks(view[entry.name][None] for entry in layout.parameters) for role, view in views.items()}
