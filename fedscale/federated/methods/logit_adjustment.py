"""Logit adjustment. Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale.config.method_options import AdjustmentOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.clients import Clients, Surveyed
from fedscale.federated.methods.base import Batch, Method, Problem, ServerWork, cross_entropy


class LogitAdjustment(Method):
    """A client minimises cross-entropy of z + τ·log π (equation 10); models are judged by z alone.

    π are the class frequencies over all clients, whose counts are summed once before round 1, or the client's own. A
    class without a sample has log 0 = −∞: it is left out of the softmax and gets no gradient.
    """

    name = "logit_adjustment"
    citation = "Menon et al., ICLR 2021, arXiv:2007.07314"
    extra_cost = "upload: one number a class, once (prior=global)"
    Options = AdjustmentOptions
    options: AdjustmentOptions

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        shape = (self.problem.num_classes,)
        if self.options.prior == "global":
            self.survey_at, self.surveys, self.shared = ("start",), {"counts": shape}, {"shift": shape}
        else:
            self.tallies = {"shift": shape}

    def survey(self, clients: Surveyed) -> None:
        clients.reports["counts"].copy_(clients.counts)

    def surveyed(self, work: ServerWork) -> None:
        work.shared["shift"].copy_(self._shift(work.reports["counts"]))

    def init(self, clients: Clients) -> None:
        if self.options.prior == "local":
            clients.tallies["shift"].copy_(self._shift(clients.counts))

    def loss(self, batch: Batch) -> Tensor:
        shift = batch.shared["shift"] if self.options.prior == "global" else batch.tallies["shift"].unsqueeze(1)
        return cross_entropy(batch.logits + shift, batch.labels)

    def _shift(self, counts: Tensor) -> Tensor:
        """τ·log π [..., C] of samples of each class [..., C]."""
        counts = counts.double()
        return self.options.tau * torch.log(counts / counts.sum(-1, keepdim=True))
