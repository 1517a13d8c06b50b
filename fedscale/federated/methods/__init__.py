"""One file a method: what a client minimises, how it is weighted, what the server does with the mean.

A method knows nothing of devices, batches or backends.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fedscale.federated.methods.fedavg import FedAvg


class Method(Protocol):
    """What a method must say."""

    name: str
    citation: str
    extra_cost: str

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The scalar that a client's step minimises; logits [B, C], labels [B]."""

    def weight(self, num_samples: int) -> float:
        """The client's weight in the server's mean."""

    def server_step(self, vector: Tensor, mean: Tensor) -> Tensor:
        """The next global vector [P + S] from the current one and the weighted mean of the cohort's."""


METHODS: dict[str, type[Method]] = {FedAvg.name: FedAvg}
