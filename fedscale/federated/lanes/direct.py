"""Linear layers whose weight gradient is written where it is wanted, not allocated, returned and copied.

On a CPU the gradient of a large linear layer is bound by memory: a fresh tensor of the weights' size costs page faults,
and plain SGD then reads it once more. Here backward writes into a persistent buffer, or subtracts lr · gᵀx from the
weights in the product itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Sink:
    """Where weight gradients go: subtracted at once with `lr` (plain SGD), or into each layer's `gradient` buffer."""

    lr: float | None = None


class DirectProduct(torch.autograd.Function):
    """x·Wᵀ for x [K, B, I] and W [K, O, I]; backward disposes of the weight gradient by itself.

    W may be used once in a forward pass: its gradient overwrites the buffer, or the weights move before a second use.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gradient: Tensor | None, sink: Sink) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradient, ctx.sink = gradient, sink
        return torch.bmm(x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = torch.bmm(grad, weight) if ctx.needs_input_grad[0] else None
        if ctx.sink.lr is not None:
            weight.baddbmm_(grad.mT, x, alpha=-ctx.sink.lr)
        else:
            torch.bmm(grad.mT, x, out=ctx.gradient)
        return grad_x, None, None, None
