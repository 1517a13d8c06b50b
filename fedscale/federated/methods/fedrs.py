"""FedRS. Li and Zhan, Federated Learning with Restricted Softmax for Label Distribution Non-IID Data, KDD 2021."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale.config.method_options import RestrictedOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.clients import Clients
from fedscale.federated.methods.base import Batch, Method, Problem, cross_entropy


class FedRS(Method):
    """A client minimises cross-entropy of ψ_c·z_c, ψ_c = 1 for the classes that it has and α for the others.

    `kind=soft` is the official code's: ψ_c = α + (1 − α)·n_c / max n, of the client's samples n of each class. The
    paper's classifier has no bias; here the bias is scaled with the rest of z. Models are judged by z alone.
    """

    name = "fedrs"
    citation = "Li and Zhan, KDD 2021, doi:10.1145/3447548.3467254"
    extra_cost = "none"
    Options = RestrictedOptions
    options: RestrictedOptions

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        self.tallies = {"scale": (self.problem.num_classes,)}

    def init(self, clients: Clients) -> None:
        clients.tallies["scale"].copy_(self.scale(clients.counts))

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(batch.logits * batch.tallies["scale"].unsqueeze(1), batch.labels)

    def scale(self, counts: Tensor) -> Tensor:
        """ψ float64 [L, C] of the clients' samples of each class [L, C]."""
        counts = counts.double()
        share = torch.sign(counts) if self.options.kind == "hard" else counts / counts.amax(1, keepdim=True)
        return self.options.alpha + (1 - self.options.alpha) * share
