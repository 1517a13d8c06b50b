"""Σ w·v over groups of lanes, into one flat vector that lives as long as the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedscale.federated.aggregation import kernels
from fedscale.federated.aggregation.exact import ExactAccumulator
from fedscale.federated.aggregation.lanes import PIECE, checked, pieces, runs
from fedscale.federated.aggregation.norms import Clip

Kind = Literal["fp32", "fp64", "exact"]


class Accumulator(Protocol):
    """A sum of weighted lanes. On `vector` [P] the caller makes one SUM collective a round, then takes the mean."""

    vector: Tensor

    def reset(self) -> None:
        """Begin a new round."""

    def add(
        self,
        blocks: Sequence[Tensor],
        offsets: Sequence[int],
        weights: Tensor,
        *,
        clip: Clip | None = None,
        bounds: Tensor | None = None,
    ) -> None:
        """Add a group: entry i of its K lanes is `blocks[i]` [K, n_i] and goes to `offsets[i]` of the vector.

        `weights` [K] are float64 on the CPU, ≥ 0; a lane of weight 0 is never read, whatever it holds. `bounds` [K],
        float64 on the CPU, are no smaller than any |value| of each lane (its `lane_norms`): only `exact` asks for
        them, and finds the bounds in a pass of its own where there are none.
        """

    def mean(self, total_weight: float, dtype: torch.dtype) -> Tensor:
        """Σ w·v / `total_weight` [P], a new tensor. Weight 0 is a programming error."""


class FloatAccumulator:
    """The sum in float32 or float64. In float64 the order of groups does not show in a float32 mean, as a rule."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.vector = torch.zeros(size, dtype=dtype, device=device)
        self._scratch: Tensor | None = None

    def reset(self) -> None:
        self.vector.zero_()

    def add(
        self,
        blocks: Sequence[Tensor],
        offsets: Sequence[int],
        weights: Tensor,
        *,
        clip: Clip | None = None,
        bounds: Tensor | None = None,
    ) -> None:
        checked(blocks, offsets, weights, len(self.vector))
        own, starts = clip.split(weights) if clip else (weights, None)
        if kernels.usable(self.vector):
            start = clip.start if clip else None
            kernels.weighted_sum(kernels.table(tuple(blocks), tuple(offsets)), own, self.vector, start, starts)
            return
        factors = own.to(self.vector)
        spans = [(first, last, factors[first:last]) for first, last in runs(own)]
        share = 0.0 if starts is None else float(starts.sum())
        for block, offset in zip(blocks, offsets, strict=True):
            target = self.vector[offset : offset + block.shape[1]]
            for first, last, weight in spans:
                self._add_block(target, block[first:last], weight)
            if clip and share:
                target.add_(clip.start[offset : offset + block.shape[1]], alpha=share)

    def _add_block(self, target: Tensor, block: Tensor, factors: Tensor) -> None:
        # A row of weights times a block of rows: the matrix-vector product reads each value once.
        if block.dtype == target.dtype:
            target.addmv_(block.t(), factors)
            return
        if self._scratch is None:
            self._scratch = torch.empty(PIECE, dtype=target.dtype, device=target.device)
        for at, piece in pieces(block, self._scratch):
            target[at : at + piece.shape[1]].addmv_(piece.t(), factors)

    def mean(self, total_weight: float, dtype: torch.dtype) -> Tensor:
        assert total_weight > 0, "mean of no client"
        return (self.vector / total_weight).to(dtype)


def make_accumulator(kind: Kind, size: int, device: torch.device, fraction_bits: int = 40) -> Accumulator:
    """The accumulator of a vector [size]: `fp32`, `fp64`, or `exact` with steps of 2^-`fraction_bits`."""
    if kind == "exact":
        return ExactAccumulator(size, device, fraction_bits)
    return FloatAccumulator(size, device, {"fp32": torch.float32, "fp64": torch.float64}[kind])
