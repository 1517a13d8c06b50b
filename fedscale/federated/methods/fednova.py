"""FedNova. Wang et al., Tackling the Objective Inconsistency Problem in Federated Optimization, NeurIPS 2020."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedscale.federated.methods.base import Method, Server, weight_of_steps
from fedscale.federated.plan import local_steps


class FedNova(Method):
    """x ← x + τ_eff·Σ p_k·(θ_k − x)/‖a_k‖₁ with τ_eff = Σ p_k·‖a_k‖₁, p_k by samples.

    The sum is the mean of the models weighted by p_k/‖a_k‖₁, times the sum of these weights, so that clients need no
    arithmetic of their own; statistics of batch norm are averaged with the same weights. ‖a_k‖₁ is what a gradient
    weighs in a client's change: its steps, or, with momentum ρ, Σ_s (1 − ρ^s)/(1 − ρ) over them (sections 4 and 5).
    """

    name = "fednova"
    citation = "Wang et al., NeurIPS 2020, arXiv:2007.07481"
    extra_cost = "none"

    def norm(self, steps: int) -> float:
        """‖a_k‖₁ of a client that takes so many steps."""
        return weight_of_steps(float(steps), self.config.momentum)

    def weight(self, num_samples: int) -> float:
        settings = self.config
        return num_samples / self.norm(local_steps(num_samples, settings.batch_size, settings.local_epochs))

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        norms, total = [self.norm(steps) for steps in server.steps], sum(server.sizes)
        shares = [size / total for size in server.sizes]
        effective = sum(share * norm for share, norm in zip(shares, norms, strict=True))
        weights = sum(share / norm for share, norm in zip(shares, norms, strict=True))
        return server.vector + effective * weights * (mean - server.vector)
