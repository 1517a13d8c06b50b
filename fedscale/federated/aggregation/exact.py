"""Σ w·v in fixed point: integer sums are associative, so order, grouping and ranks leave no trace, not in one bit.

A value counts as q = rint(double(v)·w·2^bits), ties to even. This is also the ring in which secure aggregation adds
(Bonawitz et al. 2017, arXiv:1611.04482). The weights are normalised beforehand (≤ 1, over the whole cohort).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedscale.errors import UserError
from fedscale.federated.aggregation import kernels
from fedscale.federated.aggregation.fixed_point import MAGIC, VALUE_LIMIT, biases
from fedscale.federated.aggregation.lanes import PIECE, checked, columns_at_once, runs
from fedscale.federated.aggregation.norms import Clip

SUM_LIMIT = 2.0**62
ROOM = 1.001  # bounds may be norms, which are rounded


class ExactAccumulator:
    """The sum as int64 multiples of 2^-`fraction_bits`."""

    def __init__(self, size: int, device: torch.device, fraction_bits: int) -> None:
        self.vector = torch.zeros(size, dtype=torch.int64, device=device)
        self.fraction_bits = fraction_bits
        self.used = 0.0
        """The share of the int64 range (2^62) that this rank's sums can have reached. It adds up over ranks: a SUM
        all-reduce of it beside that of `vector`, given to `check_used`, tells whether the reduced vector is right."""
        self._scale = 2.0**fraction_bits
        self._scratch: Tensor | None = None

    @property
    def headroom(self) -> float:
        """The share of the range that is left."""
        return 1 - self.used

    def reset(self) -> None:
        self.vector.zero_()
        self.used = 0.0

    def add(
        self,
        blocks: Sequence[Tensor],
        offsets: Sequence[int],
        weights: Tensor,
        *,
        clip: Clip | None = None,
        bounds: Tensor | None = None,
    ) -> None:
        """See `Accumulator.add`. UserError when a weighted value or the sum does not fit; nothing is added then."""
        checked(blocks, offsets, weights, len(self.vector))
        own, starts = clip.split(weights) if clip else (weights, None)
        needed = self._needed(self._limits(blocks, own, bounds), own)
        slices: list[Tensor] = []
        if clip and starts is not None and starts.any():
            slices = [clip.start[o : o + b.shape[1]] for b, o in zip(blocks, offsets, strict=True)]
            needed += self._needed([_peak([part[None] for part in slices], 0)] * len(starts), starts)
        check_used(self.used + needed, self.fraction_bits)
        self.used += needed
        if kernels.usable(self.vector):
            start = clip.start if clip else None
            table = kernels.table(tuple(blocks), tuple(offsets))
            kernels.weighted_sum(
                table, own * self._scale, self.vector, start, None if starts is None else starts * self._scale
            )
            return
        self._add(blocks, offsets, own * self._scale)
        if starts is not None and slices:
            # Lane by lane, though it is the same vector: the sum of a group's weights would depend on the grouping.
            self._add([part[None] for part in slices], offsets, starts * self._scale)

    def mean(self, total_weight: float, dtype: torch.dtype) -> Tensor:
        assert total_weight > 0, "mean of no client"
        return self.vector.double().div_(total_weight * self._scale).to(dtype)

    def _add(self, blocks: Sequence[Tensor], offsets: Sequence[int], scaled: Tensor) -> None:
        """Add blocks [K, n_i], or [1, n_i] for all lanes."""
        column = scaled[:, None].to(self.vector.device)
        spans = [(first, last, column[first:last], biases(last - first)) for first, last in runs(scaled)]
        for block, offset in zip(blocks, offsets, strict=True):
            for first, last, weight, excess in spans:
                for at, piece in self._biased(block if len(block) == 1 else block[first:last], weight):
                    begin = offset + at
                    # A method, because += on a slice ends by copying the slice onto itself.
                    self.vector[begin : begin + piece.shape[1]].add_(piece.view(torch.int64).sum(0)).sub_(excess)

    def _biased(self, block: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Columns of rint(block · weight [K, 1]) + MAGIC in pieces [K, c], each valid until the next."""
        if self._scratch is None:
            self._scratch = torch.empty(PIECE, dtype=torch.float64, device=self.vector.device)
        lanes = len(weight)
        width = columns_at_once(lanes)
        for number, columns in enumerate(block.split(width, dim=1)):
            count = columns.shape[1]
            piece = self._scratch[: lanes * count].view(lanes, count)
            source = columns.double() if len(block) < lanes else piece.copy_(columns)
            # Two operations, never one fused: a fused one rounds once, and not every machine has it.
            yield number * width, torch.mul(source, weight, out=piece).add_(MAGIC)

    def _limits(self, blocks: Sequence[Tensor], weights: Tensor, bounds: Tensor | None) -> list[float]:
        """What no |value| of each lane exceeds: its bound where that is low enough, else its largest value itself."""
        limits = (bounds * ROOM).tolist() if bounds is not None else [math.inf] * len(weights)
        for lane, weight in enumerate(weights.tolist()):
            if weight and not limits[lane] * weight * self._scale < VALUE_LIMIT:
                limits[lane] = _peak(blocks, lane)
        return limits

    def _needed(self, limits: Sequence[float], weights: Tensor) -> float:
        """The share of the range that these lanes can take; UserError when a single value is too large."""
        needed = 0.0
        for lane, (limit, weight) in enumerate(zip(limits, weights.tolist(), strict=True)):
            if not weight:
                continue
            assert math.isfinite(limit), f"lane {lane} is not finite and has weight {weight}"
            if limit * weight * self._scale >= VALUE_LIMIT:
                raise UserError(
                    f"federate.aggregate.fraction_bits={self.fraction_bits}: the largest value of a client, "
                    f"{limit:.3g} of weight {weight:.3g}, does not fit; expected weighted values below "
                    f"2^{51 - self.fraction_bits}; set it to {50 - math.floor(math.log2(limit * weight))} or less"
                )
            needed += limit * weight * self._scale + 1  # rounding adds up to 1/2
        return needed / SUM_LIMIT


def check_used(used: float, fraction_bits: int) -> None:
    """UserError when the sums can have overflowed: `used` above 1, summed over the ranks whose vectors are summed."""
    if used > 1:
        fitting = fraction_bits - math.ceil(math.log2(used))
        raise UserError(
            f"federate.aggregate.fraction_bits={fraction_bits}: the sum over the cohort can reach "
            f"{used * SUM_LIMIT / 2.0**fraction_bits:.3g}; expected at most 2^{62 - fraction_bits}; "
            f"set it to {fitting} or less"
        )


def _peak(blocks: Sequence[Tensor], lane: int) -> float:
    """The largest |value| of a lane."""
    extremes = [torch.stack(torch.aminmax(block[lane])).abs().amax() for block in blocks if block.shape[1]]
    return float(torch.stack(extremes).amax().double())
