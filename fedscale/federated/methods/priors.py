"""What losses share that shift logits by class counts: the counts, of all clients or of each one, and the shift."""

from __future__ import annotations

from torch import Tensor

from fedscale.config.schema import FederateConfig
from fedscale.federated.clients import Clients, Surveyed
from fedscale.federated.methods.base import Batch, Method, Problem, ServerWork, cross_entropy


class ShiftedLogits(Method):
    """A client minimises cross-entropy of z + `shift`; models are judged by z alone.

    The counts are summed over all clients once before round 1 (options.prior `global`), or the client's own (`local`).
    Where a class without a sample has a shift of −∞ it is left out of the softmax and gets no gradient.
    """

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        shape = (self.problem.num_classes,)
        if self.options.prior == "global":
            self.survey_at, self.surveys, self.shared = ("start",), {"counts": shape}, {"shift": shape}
        else:
            self.tallies = {"shift": shape}

    def shift(self, counts: Tensor) -> Tensor:
        """What is added to the logits [..., C], from samples of each class, float64 [..., C]."""
        raise NotImplementedError

    def survey(self, clients: Surveyed) -> None:
        clients.reports["counts"].copy_(clients.counts)

    def surveyed(self, work: ServerWork) -> None:
        work.shared["shift"].copy_(self.shift(work.reports["counts"]))

    def init(self, clients: Clients) -> None:
        if self.options.prior == "local":
            clients.tallies["shift"].copy_(self.shift(clients.counts.double()))

    def loss(self, batch: Batch) -> Tensor:
        shift = batch.shared["shift"] if self.options.prior == "global" else batch.tallies["shift"].unsqueeze(1)
        return cross_entropy(batch.logits + shift, batch.labels)
