"""What K clients have in memory while they train: their models, and a buffer for each role that a method names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from fedscale.federated.flat import FlatLayout, LaneBuffer


class Blocks(list[Tensor]):
    """Tensors that are worked on together, each operation in place on all of them (one kernel or few on a GPU)."""

    def add_(self, other: Sequence[Tensor], alpha: float = 1.0) -> Blocks:
        """self += alpha · other."""
        torch._foreach_add_(self, list(other), alpha=alpha)
        return self

    def sub_(self, other: Sequence[Tensor], alpha: float = 1.0) -> Blocks:
        """self −= alpha · other."""
        torch._foreach_sub_(self, list(other), alpha=alpha)
        return self

    def mul_(self, factor: float) -> Blocks:
        """self *= factor."""
        torch._foreach_mul_(self, factor)
        return self

    def copy_(self, other: Sequence[Tensor]) -> Blocks:
        """self = other."""
        torch._foreach_copy_(self, list(other))
        return self

    def div_lanes_(self, divisors: Tensor) -> Blocks:
        """Each lane divided by its own number; blocks [K, …], divisors [K]."""
        for block in self:
            block.div_(divisors.to(block.dtype).view(-1, *[1] * (block.dim() - 1)))
        return self


class LaneState:
    """The buffers of K lanes: `model` (with statistics), and one a role: of the parameters, or of a whole model."""

    def __init__(
        self, layout: FlatLayout, lanes: int, like: Tensor, roles: Iterable[str], models: Collection[str] = ()
    ) -> None:
        self.layout, self.lanes = layout, lanes
        self.model = LaneBuffer(layout, lanes, like)
        self.roles = {role: LaneBuffer(layout, lanes, like, statistics=role in models) for role in roles}
        self._views: dict[tuple[int, int], LaneView] = {}

    @property
    def num_bytes(self) -> int:
        """Of all buffers together."""
        buffers = [self.model, *self.roles.values()]
        return sum(buffer.data.numel() * buffer.data.element_size() for buffer in buffers)

    def view(self, start: int = 0, stop: int | None = None) -> LaneView:
        """Lanes `start` to `stop` (all by default)."""
        key = (start, self.lanes if stop is None else stop)
        if key not in self._views:
            self._views[key] = LaneView(self, *key)
        return self._views[key]


class LaneView:
    """A run of lanes: what a method sees. `lanes["role"]` are that role's blocks [L, *shape], one a parameter."""

    def __init__(self, state: LaneState, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        tensors = state.model.blocks(start, stop)
        names = [entry.name for entry in state.layout.parameters]
        # `.data`, not `detach()`: a version counter for each, so that an update of one block in the middle of backward
        # (running statistics, direct linear layers) does not look like a change of all the others.
        self.tensors = {name: t.data.requires_grad_(name in names) for name, t in tensors.items()}
        self.parameters = Blocks(self.tensors[name] for name in names)
        self._models = {role: buffer.blocks(start, stop) for role, buffer in state.roles.items()}
        self._roles = {role: Blocks(blocks[name] for name in names) for role, blocks in self._models.items()}

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, role: str) -> Blocks:
        return self._roles[role]

    def model(self, role: str) -> dict[str, Tensor]:
        """The tensors [L, *shape] of a role by name, statistics among them where it is a whole model."""
        return self._models[role]
