"""Server optimisers: FedAvgM (Hsu et al. 2019), FedAdagrad, FedAdam and FedYogi (Reddi et al., ICLR 2021).

The mean model minus the global one, Δ, takes the place of a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedscale.federated.methods.base import Method, Server


class FedAvgM(Method):
    """v ← β·v + Δ, x ← x + lr·v, with β = `federate.server.momentum`."""

    name = "fedavgm"
    citation = "Hsu et al., 2019, arXiv:1909.06335"
    extra_cost = "server: one vector kept"
    server_state = ("momentum",)

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        settings, momentum = self.config.server, server.state["momentum"]
        momentum.mul_(settings.momentum).add_(mean - server.vector)
        return server.vector + settings.lr * momentum


class _Adaptive(Method):
    """m ← β₁·m + (1 − β₁)·Δ, x ← x + lr·m / (√v + τ) (Algorithm 2); the methods differ in v."""

    citation = "Reddi et al., ICLR 2021, arXiv:2003.00295"
    extra_cost = "server: two vectors kept"
    server_state = ("momentum", "variance")

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        settings, delta = self.config.server, mean - server.vector
        momentum = server.state["momentum"].mul_(settings.beta1).add_(delta, alpha=1 - settings.beta1)
        if server.round == 1:
            server.state["variance"].fill_(settings.tau**2)  # v₀ ≥ τ² in the paper
        variance = self._variance(server.state["variance"], delta.square())
        return server.vector + settings.lr * momentum / (variance.sqrt() + settings.tau)

    def _variance(self, variance: Tensor, squared: Tensor) -> Tensor:
        raise NotImplementedError


class FedAdagrad(_Adaptive):
    """v ← v + Δ²."""

    name = "fedadagrad"

    def _variance(self, variance: Tensor, squared: Tensor) -> Tensor:
        return variance.add_(squared)


class FedAdam(_Adaptive):
    """v ← β₂·v + (1 − β₂)·Δ²."""

    name = "fedadam"

    def _variance(self, variance: Tensor, squared: Tensor) -> Tensor:
        beta2 = self.config.server.beta2
        return variance.mul_(beta2).add_(squared, alpha=1 - beta2)


class FedYogi(_Adaptive):
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""

    name = "fedyogi"

    def _variance(self, variance: Tensor, squared: Tensor) -> Tensor:
        beta2 = self.config.server.beta2
        return variance.sub_(squared * torch.sign(variance - squared), alpha=1 - beta2)
