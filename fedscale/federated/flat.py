"""A model's state as one flat vector, and the states of K clients as one parameter-major buffer.

Loading, averaging, an optimiser step or a drift term is then one operation on long vectors, whatever the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

ALIGNED = 32  # elements: every entry starts at a multiple, 128 bytes in float32, so that kernels keep their fast paths


@dataclass(frozen=True)
class Entry:
    """One tensor of the state: where it lies in the vector."""

    name: str
    shape: torch.Size
    offset: int

    @property
    def numel(self) -> int:
        return self.shape.numel()


@dataclass(frozen=True)
class FlatLayout:
    """Where each tensor lies in a vector [size]: trained parameters first, then averaged statistics, zeros between.

    Statistics are floating-point buffers and frozen parameters. Integer buffers (`num_batches_tracked`) are not
    averaged and stay outside. 4-D tensors lie channels-last, as convolutions over channels-last images want them.
    """

    parameters: tuple[Entry, ...]
    statistics: tuple[Entry, ...]
    num_parameters: int  # elements of the vector up to the first statistic, padding included
    size: int

    @classmethod
    def of(cls, model: nn.Module) -> FlatLayout:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        rest = [*model.named_parameters(), *model.named_buffers()]
        averaged = {name: t for name, t in rest if name not in trained and t.is_floating_point()}
        parameters, num_parameters = placed(trained, 0)
        statistics, size = placed(averaged, num_parameters)
        return cls(parameters, statistics, num_parameters, size)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        return self.parameters + self.statistics

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        return tuple(entry.offset for entry in self.entries)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The vector as tensors by name, each a view; [size], or [num_parameters] for the parameters alone."""
        entries = self.entries if len(vector) == self.size else self.parameters
        return {e.name: _view(vector[e.offset : e.offset + e.numel], e.shape) for e in entries}

    def describe(self) -> dict[str, list[int]]:
        """Shapes by name, as checkpoints keep them."""
        return {entry.name: list(entry.shape) for entry in self.entries}


def placed(tensors: Mapping[str, Tensor], offset: int) -> tuple[tuple[Entry, ...], int]:
    """Entries one after another from `offset` on, each aligned, and where the next would begin."""
    entries = []
    for name, tensor in tensors.items():
        entries.append(Entry(name, tensor.shape, offset))
        offset += -(-tensor.numel() // ALIGNED) * ALIGNED
    return tuple(entries), offset


def _view(flat: Tensor, shape: torch.Size, lanes: int = 0) -> Tensor:
    """A contiguous block as a tensor of `shape` (`lanes` of them stacked in front, when given), 4-D channels-last."""
    front = [lanes] if lanes else []
    if len(shape) == 4:
        out_channels, in_channels, height, width = shape
        stored = flat.view(*front, out_channels, height, width, in_channels)
        return stored.permute(*range(len(front)), *(len(front) + d for d in (0, 3, 1, 2)))
    return flat.view(*front, *shape)


class ModelHost(Protocol):
    """A model whose state a rank keeps as a flat vector of `layout`: whole, or its slice of it."""

    model: nn.Module
    layout: FlatLayout

    @property
    def whole_layout(self) -> FlatLayout: ...

    def load(self, vector: Tensor) -> None:
        """Make the model's state equal to the vector."""

    def read(self) -> Tensor:
        """The model's state as a vector."""

    def slice_of(self, whole: Tensor) -> Tensor:
        """This rank's slice of a vector of `whole_layout` (or of its parameters alone)."""

    def whole_of(self, own: Tensor) -> Tensor:
        """The inverse; every rank must ask for it."""


class FlatModel:
    """`model` with its state moved into `vector` [size] of `layout`: parameters and statistics become views of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layout = FlatLayout.of(model)
        tensors = dict(_floating_state(model))
        example = next(iter(tensors.values()))
        self._counters = [(b, b.clone()) for b in model.buffers() if not b.is_floating_point()]
        self.vector = torch.zeros(self.layout.size, device=example.device, dtype=example.dtype)
        with torch.no_grad():
            for name, view in self.layout.views(self.vector).items():
                view.copy_(tensors[name])
                tensors[name].data = view
        self.parameters = [tensors[entry.name] for entry in self.layout.parameters]

    @property
    def whole_layout(self) -> FlatLayout:
        """The layout of a client's whole model, of which other hosts hold a slice."""
        return self.layout

    def slice_of(self, whole: Tensor) -> Tensor:
        """This rank's slice of a whole vector."""
        return whole

    def whole_of(self, own: Tensor) -> Tensor:
        """A whole vector of the slices of all ranks."""
        return own

    def load(self, vector: Tensor) -> None:
        """Make the model's state equal to `vector` [size]; integer buffers get their first values back."""
        self.vector.copy_(vector)
        for counter, initial in self._counters:
            counter.copy_(initial)

    def read(self) -> Tensor:
        """The model's state as a vector, a copy."""
        return self.vector.clone()


def _floating_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point())


class LaneBuffer:
    """The vectors of K clients, parameter-major: entry i of all lanes is one contiguous block [K, *shape].

    The block of an entry begins at K times its offset; so a run of neighbouring lanes is contiguous in every block too.
    """

    def __init__(self, layout: FlatLayout, lanes: int, like: Tensor, statistics: bool = True) -> None:
        self.lanes = lanes
        self.entries = layout.entries if statistics else layout.parameters
        size = layout.size if statistics else layout.num_parameters
        self.data = torch.zeros(lanes * size, device=like.device, dtype=like.dtype)

    def flat_blocks(self, start: int = 0, stop: int | None = None) -> list[Tensor]:
        """Lanes `start` to `stop` (all by default) of each entry, as contiguous views [lanes, numel]."""
        stop = self.lanes if stop is None else stop
        blocks = []
        for entry in self.entries:
            at = self.lanes * entry.offset
            block = self.data[at + start * entry.numel : at + stop * entry.numel]
            blocks.append(block.view(stop - start, entry.numel))
        return blocks

    def blocks(self, start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
        """Lanes `start` to `stop` of each entry by name, [lanes, *shape]."""
        flat = self.flat_blocks(start, stop)
        return {e.name: _view(b.view(-1), e.shape, len(b)) for e, b in zip(self.entries, flat, strict=True)}

    def fill(self, vector: Tensor) -> None:
        """Make every lane equal to `vector` (of the layout's size, or longer)."""
        for entry, block in zip(self.entries, self.flat_blocks(), strict=True):
            block.copy_(vector[entry.offset : entry.offset + entry.numel].expand_as(block))

    def lane(self, index: int, out: Tensor) -> Tensor:
        """Copy one lane into the flat vector `out`, whose paddings it leaves alone."""
        for entry, block in zip(self.entries, self.flat_blocks(index, index + 1), strict=True):
            out[entry.offset : entry.offset + entry.numel] = block[0]
        return out

    def set_lane(self, index: int, vector: Tensor) -> None:
        """Copy the flat `vector` into one lane."""
        for entry, block in zip(self.entries, self.flat_blocks(index, index + 1), strict=True):
            block[0] = vector[entry.offset : entry.offset + entry.numel]
