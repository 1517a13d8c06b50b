"""What a method is: pure functions init / step / final of a client, the upload, and the server's update.

A method knows nothing of devices, batches, backends or ranks. Its arithmetic is on blocks of L clients at once, or on
flat vectors at the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fedscale.config.schema import FederateConfig
from fedscale.federated.lanes.state import Blocks, LaneView


@dataclass(frozen=True)
class Server:
    """What the server's update works on: parameters, or this rank's share of them; every operation is element-wise."""

    vector: Tensor  # the global parameters before this round
    state: dict[str, Tensor]  # `server_state` by name, updated in place
    participation: float  # cohort / clients
    round: int


class Method:
    """FedAvg's client and server; a method overrides what it changes."""

    name: str
    citation: str
    extra_cost: str
    roles: tuple[str, ...] = ()  # buffers of every lane, [L, *shape] a parameter; "start" is filled with the globals
    client_state: tuple[str, ...] = ()  # those of the roles that a client keeps from one of its rounds to the next
    uploads: tuple[str, ...] = ()  # those whose plain mean over the cohort the server gets, beside the models'
    server_state: tuple[str, ...] = ()  # vectors that the server keeps
    broadcast: tuple[str, ...] = ()  # those of them that `init` reads

    def __init__(self, config: FederateConfig) -> None:
        self.config = config

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` changes gradients; a step without it is cheaper."""
        return type(self).adjust is not Method.adjust

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each sample's loss [L, B]; logits [L, B, C], labels [L, B]. A client minimises its batch's mean."""
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(labels.shape)

    def weight(self, num_samples: int) -> float:
        """The client's weight in the mean of the models."""
        return float(num_samples)

    def init(self, lanes: LaneView, server: Mapping[str, Blocks]) -> None:
        """Before a client's first step; `server` holds what is broadcast, as blocks [1, *shape]."""

    def adjust(self, lanes: LaneView, gradients: Blocks) -> None:
        """Change the gradients of a step in place."""

    def final(self, lanes: LaneView, steps: Tensor) -> None:
        """After a client's last step; `steps` [L] are its numbers of steps."""

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        """The next global parameters, from the weighted mean of the clients' and the means of the uploads."""
        return mean
