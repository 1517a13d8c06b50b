"""Fed-GraB. Xiao et al., Federated Long-tailed Learning with Self-Adjusting Gradient Balancer, NeurIPS 2023."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fedscale.config.method_options import GrabOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.methods.base import Batch, Method, Problem, ServerWork
from fedscale.models.resnet import Classifier

STATE = ("difference", "output", "last", "before")


class FedGraB(Method):
    """A client minimises Σ_j BCE(σ(z_j), [y = j]), and a controller a class and client re-weights its gradients.

    SGB: with Δ_j the sum of all |gradients| that positives gave z_j less that of negatives, over steps and rounds,
    and e = −Δ_j, u += K_p·(e − e′) + K_i·e + K_d·(e − 2e′ + e″); positive gradients then count f(u), negative ones
    f(−u) times, f(u) = (10/9)/(1/9 + exp(−s·u)), from 0 over f(0) = 1 to 10. Both sums are of re-weighted gradients.
    DPA: the server takes the norms of the classifier's rows, less their smallest, for class shares, summed over the
    rounds; classes behind the first 95% of them are the tail, whose controllers work in the next round.
    """

    name = "fedgrab"
    citation = "Xiao et al., NeurIPS 2023, arXiv:2310.07587"
    extra_cost = "client: four numbers a class kept; server: norms of the classifier's rows"
    Options = GrabOptions
    options: GrabOptions
    keeps = STATE

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        shape = (self.problem.num_classes,)
        self.tallies = dict.fromkeys(STATE, shape)
        self.shared = {"open": shape, "shares": shape}  # `shares` is the server's own
        self.unsent = ("shares",)

    def first_shared(self, shared: Mapping[str, Tensor], seed: int) -> None:
        if self.options.classes == "all":
            shared["open"].fill_(1.0)

    def server_work(self, work: ServerWork) -> None:
        if self.options.classes == "all":
            return
        with torch.no_grad():
            rows = cast(Classifier, work.model).classifier.weight
            work.shared["shares"].add_(class_shares(rows))
            work.shared["open"].copy_(tail_of(work.shared["shares"], self.options.tail_after))

    def loss(self, batch: Batch) -> Tensor:
        classes = torch.arange(batch.logits.shape[2], device=batch.labels.device)
        targets = (batch.labels.unsqueeze(2) == classes).to(batch.logits.dtype)
        with torch.no_grad():
            output = self._controlled(batch.tallies, batch.shared["open"])
            negative = mapped(-output if self.options.negatives else torch.zeros_like(output), self.options.slope)
            positive = mapped(output, self.options.slope)
            weights = torch.where(targets > 0, positive.unsqueeze(1), negative.unsqueeze(1))
            # Of the batch's mean loss by z, signed so that positives count up and negatives down.
            gradients = (targets - torch.sigmoid(batch.logits)) * weights / batch.labels.shape[1]
            batch.tallies["difference"].add_(gradients.sum(1))
        return (F.binary_cross_entropy_with_logits(batch.logits, targets, reduction="none") * weights).sum(2)

    def _controlled(self, state: Mapping[str, Tensor], opened: Tensor) -> Tensor:
        """The controllers' next output [L, C]; those that are not open stand at their start."""
        options, error = self.options, -state["difference"]
        output = state["output"] + options.kp * (error - state["last"]) + options.ki * error
        output = output + options.kd * (error - 2 * state["last"] + state["before"])
        for name, value in (("before", state["last"]), ("last", error), ("output", output)):
            state[name].copy_(torch.where(opened > 0, value, 0.0))
        return state["output"]


def mapped(output: Tensor, slope: float) -> Tensor:
    """f(u), a weight from 0 to 10."""
    return (10 / 9) / (1 / 9 + torch.exp(-slope * output))


def class_shares(rows: Tensor) -> Tensor:
    """Shares [C] of the norms of a classifier's rows [C, D], less the smallest; equal ones where all norms are."""
    norms = rows.norm(dim=1)
    above = norms - norms.min()  # standardised and shifted to 0, as the code has it: the sum takes the scale out again
    return torch.where(above.sum() > 0, above / above.sum().clamp(min=1e-30), 1 / len(norms))


def tail_of(shares: Tensor, after: float) -> Tensor:
    """1 for the classes [C] that begin at or behind `after` of the sum, counted from the largest; 0 for others."""
    ordered, classes = shares.sort(descending=True, stable=True)
    begins = ordered.cumsum(0) - ordered
    return torch.zeros_like(shares).index_fill_(0, classes[begins >= after * ordered.sum()], 1.0)
