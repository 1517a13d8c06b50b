"""The sums and norms on a GPU: one launch for all blocks of a group, one pass over its memory.

Triton is imported when a CUDA tensor first comes along; where it is missing, the plain torch code serves GPUs as well.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from fedscale.federated.aggregation.fixed_point import MAGIC, MAGIC_BITS

WIDTH = 512  # columns of a tile
LANES = 8  # lanes of a tile: as many loads are under way at once


@dataclass(frozen=True)
class Table:
    """Where a group's blocks lie: `entries` [E, 3] (address, columns, offset) and `tiles` [T, 2] (entry, column)."""

    entries: Tensor
    tiles: Tensor
    lanes: int
    dtype: torch.dtype


def usable(tensor: Tensor) -> bool:
    """Whether the kernels serve this tensor."""
    return tensor.is_cuda and _triton_installed()


@cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def table(blocks: Sequence[Tensor], offsets: Sequence[int] = ()) -> Table:
    """The table of contiguous blocks [K, n_i] of one dtype; `offsets` may be missing where no vector is involved."""
    lanes, dtype, device = len(blocks[0]), blocks[0].dtype, blocks[0].device
    assert all(b.is_contiguous() and b.dtype == dtype and len(b) == lanes for b in blocks), "blocks of one kind"
    rows = tuple((b.data_ptr(), b.shape[1]) for b in blocks)
    return _table(rows, tuple(offsets) or (0,) * len(rows), lanes, dtype, device)


@lru_cache(maxsize=64)  # a run's buffers stay where they are, and building and sending a table takes longer than a sum
def _table(
    rows: tuple[tuple[int, int], ...], offsets: tuple[int, ...], lanes: int, dtype: torch.dtype, device: torch.device
) -> Table:
    entries = [(address, columns, offset) for (address, columns), offset in zip(rows, offsets, strict=True)]
    tiles = [
        torch.stack([torch.full_like(first, number), first], dim=1)
        for number, (_, columns) in enumerate(rows)
        for first in [torch.arange(0, columns, WIDTH)]
    ]
    return Table(torch.tensor(entries).to(device), torch.cat(tiles).to(device), lanes, dtype)


def weighted_sum(
    table: Table, weights: Tensor, out: Tensor, start: Tensor | None, start_weights: Tensor | None
) -> None:
    """out[offset + j] += Σ_k (weights_k · block[k, j] + start_weights_k · start[offset + j]); `out` [P].

    Weights [K] float64. A lane of weight 0 is not read. Sums are taken in the dtype of `out`; when that is int64, each
    product is rounded to the nearest integer first (|product| < 2^51, in double).
    """
    from fedscale.federated.aggregation import triton_kernels as compiled

    if len(table.tiles) == 0:
        return
    compiled.weighted_sum[(len(table.tiles),)](
        table.entries,
        table.tiles,
        weights.to(out.device),
        out,
        out if start is None else start,
        weights.to(out.device) if start_weights is None else start_weights.to(out.device),
        table.lanes,
        **constants(table.dtype, out.dtype, start is not None),
        enable_fp_fusion=fused(out.dtype),
    )


def constants(element: torch.dtype, out: torch.dtype, with_start: bool) -> dict[str, Any]:
    """What a `weighted_sum` program is compiled for."""
    from fedscale.federated.aggregation import triton_kernels as compiled

    return {
        "ELEMENT": compiled.ELEMENTS[element],
        "SUM": compiled.ELEMENTS[out],
        "EXACT": out == torch.int64,
        "WITH_START": with_start,
        "MAGIC": MAGIC,
        "MAGIC_BITS": MAGIC_BITS,
        "WIDTH": WIDTH,
        "LANES": LANES,
    }


def fused(out: torch.dtype) -> bool:
    """Whether products may be fused with what follows: not before rounding to integers, two steps as on a CPU."""
    return out != torch.int64


def squared_norms(table: Table, start: Tensor | None) -> Tensor:
    """Σ_j (block[k, j] − start[offset + j])² over all blocks [K], float64; without `start`, of the block alone."""
    from fedscale.federated.aggregation import triton_kernels as compiled

    # One cell a tile, summed afterwards: atomic additions would come in another order each time.
    cells = torch.zeros(table.lanes, len(table.tiles), dtype=torch.float64, device=table.tiles.device)
    if cells.shape[1]:
        compiled.squared_norms[(cells.shape[1],)](
            table.entries,
            table.tiles,
            cells if start is None else start,
            cells,
            table.lanes,
            cells.shape[1],
            ELEMENT=compiled.ELEMENTS[table.dtype],
            WITH_START=start is not None,
            WIDTH=WIDTH,
            LANES=LANES,
            enable_fp_fusion=True,
        )
    return cells.sum(1)
