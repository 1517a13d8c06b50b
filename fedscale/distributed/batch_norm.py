"""Batch norm over the batch that several ranks share; like nn.SyncBatchNorm, which refuses CPU tensors.

Ranks may hold parts of different sizes, and a rank without a part gives samples that count for nothing (or no samples).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncedBatchNorm(nn.Module):
    """`norm` with the mean and variance of the whole batch: its own parameters, statistics and state's names.

    The gradients of a rank's samples and parameters are those of the sum of the ranks' losses. Statistics are taken in
    at least fp32. `group` None are all ranks. Raises ValueError for a norm without a moving average.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        if norm.momentum is None or not norm.track_running_stats:
            raise ValueError(f"{norm}: expected a moving average of statistics (momentum and track_running_stats)")
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.eps, self.momentum = norm.eps, norm.momentum
        self._group = group
        self.counted: Tensor | None = None  # [B]: 1 for samples of the batch, 0 for those that stand in; None is all 1
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        over, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        counted = x.new_ones(len(x)) if self.counted is None else self.counted.to(x.dtype)
        pixels, mask = x.shape[2:].numel(), counted.view(-1, *[1] * (x.dim() - 1))
        mine = torch.cat([(x * mask).sum(over), (counted.sum() * pixels)[None]])
        sums = _RankSum.apply(mine, self._group)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = _RankSum.apply((centred.square() * mask).sum(over), self._group) / count
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None and self.bias is not None:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(given)


class _RankSum(torch.autograd.Function):
    """A sum over ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = value.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def synchronise_batch_norms(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Replace every batch norm inside `module` by one over the ranks of `group` (None: all), in place."""
    for name, child in module.named_children():
        if isinstance(child, NORMS):
            setattr(module, name, SyncedBatchNorm(child, group))
        else:
            synchronise_batch_norms(child, group)
