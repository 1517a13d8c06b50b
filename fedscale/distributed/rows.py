"""Rows of all ranks side by side, with gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows [n, D] of all ranks in their order, however many each has, and where this rank's begin.

    A row's gradient is the sum of what all ranks make of it. Alone the rows are what they were.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    gathered: Tensor = _Gathered.apply(rows, sizes)
    return gathered, sum(sizes[: dist.get_rank()])


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        first = sum(sizes[: dist.get_rank()])
        ctx.own = slice(first, first + len(rows))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own], None
