"""Local training of L clients side by side: the steps of a plan, on a form of the model, with a method's terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedscale.federated.backends.base import Interrupted, RoundStart, Trained
from fedscale.federated.backends.optimise import descend
from fedscale.federated.lanes.direct import Sink
from fedscale.federated.lanes.state import Blocks, LaneState, LaneView
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
        self.state = LaneState(layout, lanes, like, sorted(roles))
        self.plain = not method.adjusts and not settings.momentum and not settings.weight_decay
        self._like, self._row = like, like.new_zeros(layout.num_parameters)
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
        whole = self.begin(start, plan)
        start.begun()
        losses = torch.zeros(plan.lanes, dtype=torch.float64, device=self._like.device)
        for step in range(plan.steps[0]):
            if start.interrupted():
                raise Interrupted
            for first, stop, size in plan.runs(step):
                losses[first:stop] += self.step(staged, self.state.view(first, stop), step, size)
        return self.end(whole, plan, losses)

    def begin(self, start: RoundStart, plan: GroupPlan) -> LaneView:
        """Fill the buffers for the plan's clients."""
        whole = self.state.view(0, plan.lanes)
        self.state.model.fill(start.vector)
        fill_roles(self.state, self.method, start, plan, self._row)
        self.method.init(whole, broadcast_blocks(self.layout, start))
        return whole

    def end(self, whole: LaneView, plan: GroupPlan, losses: Tensor) -> Trained:
        """The method's last word, and the lanes as they are now."""
        steps = torch.tensor(plan.steps, dtype=torch.float64, device=self._like.device)
        self.method.final(whole, steps)
        return Trained(plan, self.state, losses / steps)

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
            staged, rows, augment_keys[lanes], step, self.form.channels_last, self._like.dtype
        )
        form = self.form
        form.lanes.dropout_keys, form.lanes.step = dropout_keys[lanes], step
        if self._direct:
            form.lanes.gradients = {name: buffer[lanes] for name, buffer in self._direct.items()}
        with torch.enable_grad():
            losses = self.losses(view, images, labels)
        self.update(view, losses)
        return losses.detach()

    def losses(self, view: LaneView, images: Tensor, labels: Tensor) -> Tensor:
        """Each lane's mean loss [L] on its batch."""
        with torch.autocast(self._like.device.type, torch.bfloat16, enabled=self._autocast):
            logits = self.form.logits(view, images)
        return self.method.loss(logits.to(self._like.dtype), labels).mean(1)

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
                start.clients.read(client, role, row)
                buffer.set_lane(lane, row)
        elif role == "momentum":
            buffer.data.zero_()


def broadcast_blocks(layout: FlatLayout, start: RoundStart) -> dict[str, Blocks]:
    """The server's vectors as blocks [1, *shape], one a parameter."""
    views = {role: layout.views(vector) for role, vector in start.broadcast.items()}
    return {role: Blocks(view[entry.name][None] for entry in layout.parameters) for role, view in views.items()}
