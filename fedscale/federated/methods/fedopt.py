"""Server optimisers: FedAvgM (Hsu et al. 2019), FedAdagrad, FedAdam and FedYogi (Reddi et al., ICLR 2021).

The mean model minus the global one, Δ, takes the place of a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedscale.config.method_options import AdaptiveOptions, MomentumOptions
from fedscale.federated.methods.base import Method, Server


class FedAvgM(Method):
    """v ← β·v + Δ, x ← x + lr·v, with β = `momentum` and lr = `server_lr`."""

    name = "fedavgm"
    citation = "Hsu et al., 2019, arXiv:1909.06335"
    extra_cost = "server: one vector kept"
    Options = MomentumOptions
    options: MomentumOptions
    server_state = ("momentum",)

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        momentum = server.state["momentum"].mul_(self.options.momentum).add_(mean - server.vector)
        return server.vector + self.options.server_lr * momentum


class _Adaptive(Method):
    """m ← β₁·m + (1 − β₁)·Δ, x ← x + lr·m / (√v + τ) (Algorithm 2); the methods differ in v."""

    citation = "Reddi et al., ICLR 2021, arXiv:2003.00295"
    extra_cost = "server: two vectors kept"
    Options = AdaptiveOptions
    options: AdaptiveOptions
    server_state = ("momentum", "variance")

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        options, delta = self.options, mean - server.vector
        momentum = server.state["momentum"].mul_(options.beta1).add_(delta, alpha=1 - options.beta1)
        if server.round == 1:
            server.state["variance"].fill_(options.tau**2)  # v₀ ≥ τ² in the paper
        variance = self._variance(server.state["variance"], delta.square())
        return server.vector + options.server_lr * momentum / (variance.sqrt() + options.tau)

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
        beta2 = self.options.beta2
        return variance.mul_(beta2).add_(squared, alpha=1 - beta2)


class FedYogi(_Adaptive):
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""

    name = "fedyogi"

    def _variance(self, variance: Tensor, squared: Tensor) -> Tensor:
        beta2 = self.options.beta2
        return variance.sub_(squared * torch.sign(variance - squared), alpha=1 - beta2)
