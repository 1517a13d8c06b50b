"""Lanes' L2 norms in one reading pass, and what they decide: who diverged, and by how much an update is scaled down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedscale.federated.aggregation import kernels

WIDTH = 16384  # columns whose squares are summed in the block's own precision before float64 takes over


@dataclass(frozen=True)
class Clip:
    """Lanes that count as start + factor·(lane − start): the global vector `start` [P], `factors` [K] from 0 to 1."""

    start: Tensor
    factors: Tensor

    def split(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Each lane's weight [K] as what its own vector gets and what `start` gets; no buffer need be rewritten."""
        kept = weights > 0  # a diverged lane's factor is NaN, and so would be 0 times it
        own = torch.where(kept, weights * self.factors, 0.0)
        return own, torch.where(kept, weights * (1 - self.factors), 0.0)


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """min(1, clip_norm / ‖Δ‖) of each lane [K] (float64); FlatClip of McMahan et al. 2018, arXiv:1710.06963."""
    return (clip_norm / norms).clamp(max=1.0)


def lane_norms(blocks: Sequence[Tensor], offsets: Sequence[int] = (), start: Tensor | None = None) -> Tensor:
    """Every lane's L2 norm [K] (float64, CPU) of v, or of v − `start` with the flat global vector `start` [P].

    A norm that is not finite tells a diverged lane. Relative error below 1e-5 for float32 blocks [K, n]. Norms do not
    depend on what the other lanes hold. With `start`, `offsets` says where each block's slice begins.
    """
    if start is not None:
        assert len(blocks) == len(offsets), f"{len(blocks)} blocks, {len(offsets)} offsets"
    if kernels.usable(blocks[0]):
        squares = kernels.squared_norms(kernels.table(tuple(blocks), tuple(offsets)), start)
        return squares.sqrt().cpu()
    squares = _squares(blocks, offsets, start, torch.promote_types(blocks[0].dtype, torch.float32))
    suspect = (~squares.isfinite()).nonzero().flatten()
    if len(suspect):  # their squares may have overflowed float32 though they are finite
        rows = [block[suspect] for block in blocks]
        squares[suspect] = _squares(rows, offsets, start, torch.float64)
    return squares.sqrt().cpu()


def _squares(blocks: Sequence[Tensor], offsets: Sequence[int], start: Tensor | None, dtype: torch.dtype) -> Tensor:
    lanes, device = len(blocks[0]), blocks[0].device
    total = torch.zeros(lanes, dtype=torch.float64, device=device)
    scratch = torch.empty(lanes * WIDTH, dtype=dtype, device=device)
    for number, block in enumerate(blocks):
        for at, columns in zip(range(0, block.shape[1], WIDTH), block.split(WIDTH, dim=1), strict=True):
            piece = columns.to(dtype)
            if start is not None:
                begin = offsets[number] + at
                origin = start[begin : begin + columns.shape[1]].to(dtype)
                piece = torch.sub(piece, origin, out=scratch[: columns.numel()].view(columns.shape))
            total += torch.linalg.vector_norm(piece, dim=1).double().square_()
    return total
