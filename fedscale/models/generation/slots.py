"""Keys and values of a fixed number of rows that come and go: what lets a finished row's place be taken by another.

All rows share one window of columns and end at its right edge; a row that began later is masked further left, and a
mask may have holes (the padding between a shared prefix and questions of different lengths). Columns are written into
room that was set aside, where a DynamicCache copies the whole cache for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64  # columns set aside at a time: a cache of some hundred columns is copied once in so many tokens


@dataclass
class _Window:
    """The columns in use, shared by all layers."""

    rows: int
    start: int = 0
    end: int = 0
    capacity: int = 0


class _Layer(DynamicLayer):
    """One layer's keys and values, [rows, heads, capacity, head size]."""

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self._window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room in the shape of these states, but with the window's rows and columns."""
        self.dtype, self.device = key_states.dtype, key_states.device
        for name, states in (("keys", key_states), ("values", value_states)):
            # Zeros: what is masked is weighted with 0, and 0 × NaN of memory as found would still be NaN.
            shape = self._window.rows, states.shape[1], self._window.capacity, states.shape[3]
            setattr(self, name, states.new_zeros(shape))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write behind the window; returns the window with what was written."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, before = self._window.start, self._window.end
        after = before + key_states.shape[2]
        self.keys[:, :, before:after] = key_states
        self.values[:, :, before:after] = value_states
        return self.keys[:, :, start:after], self.values[:, :, start:after]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self._window.end - self._window.start if self.is_initialized else 0


class SlotCache(Cache):
    """A cache for transformers' models, and the mask that belongs to it."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._window = _Window(rows)
        super().__init__(layer_class_to_replicate=partial(_Layer, self._window))
        self._mask = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self._left: list[int | None] = [None] * rows  # a row's first column; none = the row is free
        self._holed = [False] * rows

    @property
    def rows(self) -> int:
        """Rows, free ones included."""
        return self._window.rows

    @property
    def width(self) -> int:
        """Columns in use."""
        return self._window.end - self._window.start

    def append(self, lengths: Sequence[int]) -> Tensor | None:
        """Make room for one forward pass with `lengths[row]` new tokens in each row, right-aligned, q at most.

        Returns what its queries may see, bool [rows, 1, q, width + q], or none where plain causal attention is right.
        """
        window, longest = self._window, max(lengths)
        if window.end + longest > window.capacity:
            self._move(0, longest + ROOM)
        begins_here = self.width == 0
        columns = self._mask[:, window.end : window.end + longest]
        if min(lengths) == longest:
            columns.fill_(True)
        else:
            counts = torch.tensor(lengths, device=columns.device)[:, None]
            columns.copy_(torch.arange(longest, 0, -1, device=columns.device) <= counts)
        for row, length in enumerate(lengths):
            if begins_here:
                self._left[row] = window.end + longest - length
            elif length < longest:
                self._holed[row] = True
        if self._dense() and (begins_here or longest == 1):
            return None
        seen = self._mask[:, None, None, window.start : window.end + longest]
        return seen if longest == 1 else _causal(seen, longest)

    def advance(self, columns: int) -> None:
        """Take the columns that the forward pass has written into the window."""
        self._window.end += columns

    def place(self, rows: Sequence[int], source: SlotCache, source_rows: Sequence[int]) -> None:
        """Copy rows of another cache into free rows of this one, right-aligned."""
        window, other = self._window, source._window
        if source.width > window.end:
            self._move(source.width - self.width, ROOM)
        left = window.end - source.width
        window.start = min(window.start, left) if self.width else left
        index, taken = _Index(rows), _Index(source_rows)
        for number, layer in enumerate(source.layers):
            if number == len(self.layers):
                self.layers.append(_Layer(window))
            mine = self.layers[number]
            if not mine.is_initialized:
                mine.lazy_initialization(layer.keys, layer.values)
            for to, of in ((mine.keys, layer.keys), (mine.values, layer.values)):
                to[index.on(to), :, left : window.end] = of[taken.on(of), :, other.start : other.end]
        to_rows = index.on(self._mask)
        self._mask[to_rows, : window.end] = False
        self._mask[to_rows, left : window.end] = source._mask[taken.on(self._mask), other.start : other.end]
        for row, one in zip(rows, source_rows, strict=True):
            first = source._left[one]
            self._left[row] = None if first is None else first - other.start + left
            self._holed[row] = source._holed[one]

    def release(self, rows: Sequence[int]) -> None:
        """Free rows, and drop the columns that no row needs any more."""
        for row in rows:
            self._left[row], self._holed[row] = None, False
        self._window.start = min((left for left in self._left if left is not None), default=self._window.end)

    def keep(self, rows: Sequence[int]) -> None:
        """Shrink to these rows, in this order."""
        index, start, window = _Index(rows), self._window.start, self._window
        for layer in self.layers:
            layer.keys = layer.keys[index.on(layer.keys), :, start:]
            layer.values = layer.values[index.on(layer.values), :, start:]
        self._mask = self._mask[index.on(self._mask), start:]
        lefts = [self._left[row] for row in rows]
        self._left = [None if left is None else left - start for left in lefts]
        self._holed = [self._holed[row] for row in rows]
        window.rows, window.start, window.end = len(rows), 0, window.end - start
        window.capacity -= start

    def _dense(self) -> bool:
        """Whether no row that is in use has a masked column in the window."""
        return not any(self._holed) and all(left in (None, self._window.start) for left in self._left)

    def _move(self, before: int, behind: int) -> None:
        """Into new room with so many free columns before and behind the window, which then starts at `before`."""
        window, start, width = self._window, self._window.start, self.width
        window.capacity = before + width + behind
        for layer in self.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                new = old.new_zeros(*old.shape[:2], window.capacity, old.shape[3])
                new[:, :, before : before + width] = old[:, :, start : window.end]
                setattr(layer, name, new)
        mask = self._mask.new_zeros(window.rows, window.capacity)
        mask[:, before : before + width] = self._mask[:, start : window.end]
        self._mask = mask
        self._left = [None if left is None else left - start + before for left in self._left]
        window.start, window.end = before, before + width


class _Index:
    """Row numbers as a tensor on each device that asks for them (the layers of a large model lie on several)."""

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = torch.tensor(rows, dtype=torch.long)
        self._on: dict[torch.device, Tensor] = {}

    def on(self, tensor: Tensor) -> Tensor:
        if tensor.device not in self._on:
            self._on[tensor.device] = self._rows.to(tensor.device)
        return self._on[tensor.device]


def _causal(seen: Tensor, queries: int) -> Tensor:
    """Key columns that may be seen [B, 1, 1, K] → [B, 1, Q, K] for the last Q of them as queries, none in the future.

    A query always sees itself: padding that saw nothing at all would be NaN under some kernels.
    """
    keys = torch.arange(seen.shape[-1], device=seen.device)
    own = keys[-queries:, None]
    return (seen & (keys <= own)) | (keys == own)
