"""The weighted mean of the clients' vectors, accumulated one after another: one sum is kept, never K models."""

from __future__ import annotations

import torch
from torch import Tensor


class WeightedMean:
    """Accumulates Σ w·v and Σ w in float64, so that the order of the clients does not show in the float32 result."""

    def __init__(self, like: Tensor) -> None:
        self._sum = torch.zeros_like(like, dtype=torch.float64)
        self.weight = 0.0

    def add(self, vector: Tensor, weight: float) -> None:
        """Add one client's vector [P + S] with its weight (> 0)."""
        self._sum.add_(vector, alpha=weight)
        self.weight += weight

    def mean(self, dtype: torch.dtype) -> Tensor:
        """Σ w·v / Σ w [P + S]. Nothing added is a programming error."""
        assert self.weight > 0, "mean of no client"
        return (self._sum / self.weight).to(dtype)
