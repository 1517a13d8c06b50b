"""What the sums share: which lanes count, how much, and blocks in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 3 << 17  # elements converted at once: 3 MiB in float64; more calls below, cache misses above (measured)


def runs(weights: Tensor) -> list[tuple[int, int]]:
    """The longest runs [first, last) of neighbouring lanes whose weight is not 0.

    Lanes without weight are stepped over instead of multiplied by 0: a diverged lane's NaN would survive that.
    """
    found: list[tuple[int, int]] = []
    for lane, weight in enumerate(weights.tolist()):
        if weight == 0:
            continue
        if found and found[-1][1] == lane:
            found[-1] = (found[-1][0], lane + 1)
        else:
            found.append((lane, lane + 1))
    return found


def columns_at_once(lanes: int) -> int:
    """How many columns of so many lanes are converted at once: what fits PIECE elements, an odd multiple of 16.

    Rows then begin with a cache line, and not all in the same set of the cache: without either it takes 1.1 times as
    long (measured).
    """
    width = (PIECE // lanes - 16) // 32 * 32 + 16
    assert width > 0, f"{lanes} lanes at once; at most {PIECE // 16} fit the scratch memory"
    return width


def pieces(block: Tensor, scratch: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Columns of `block` [K, n] as (first column, copy [K, c] in `scratch` [PIECE] and its dtype), until the next."""
    width = columns_at_once(len(block))
    for number, columns in enumerate(block.split(width, dim=1)):
        yield number * width, scratch[: columns.numel()].view(columns.shape).copy_(columns)


def checked(blocks: Sequence[Tensor], offsets: Sequence[int], weights: Tensor, size: int) -> None:
    """An assertion error unless the blocks fit the vector [size] and the weights [K] are float64, ≥ 0 and finite."""
    assert len(blocks) == len(offsets) > 0, f"{len(blocks)} blocks, {len(offsets)} offsets"
    assert weights.dtype == torch.float64 and weights.device.type == "cpu", "weights are float64 on the CPU"
    assert bool(((weights >= 0) & weights.isfinite()).all()), (
        f"weights {weights.tolist()}, expected finite and 0 or more"
    )
    lanes = len(weights)
    for block, offset in zip(blocks, offsets, strict=True):
        assert block.dim() == 2 and block.shape[0] == lanes, f"block {tuple(block.shape)}, {lanes} weights"
        assert 0 <= offset <= size - block.shape[1], f"block of {block.shape[1]} at {offset} in a vector of {size}"
