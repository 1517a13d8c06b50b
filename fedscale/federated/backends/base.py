"""What a backend is given and what it gives: a group's plan in, its clients' models out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from fedscale.federated.lanes.state import LaneState
from fedscale.federated.plan import GroupPlan


class Interrupted(Exception):
    """A stop was asked for in the middle of a round; what the round has done so far is thrown away."""


class OutOfMemory(Exception):
    """Memory ran out where fewer lanes would change bits that are promised. The engine's text says what to do."""


class ClientRows(Protocol):
    """Where clients' own vectors are kept between rounds."""

    def read(self, client: int, role: str, out: Tensor) -> bool:
        """Fill `out` with the client's vector; zeros, and False returned, before its first round."""


def _none() -> nn.Module:
    raise RuntimeError("no rank holds a whole model here")


@dataclass(frozen=True)
class RoundStart:
    """What every client of a round starts from."""

    vector: Tensor  # the global vector [size]
    broadcast: Mapping[str, Tensor] = field(default_factory=dict)  # server vectors that the method sends along
    clients: ClientRows | None = None
    interrupted: Callable[[], bool] = lambda: False
    begun: Callable[[], None] = lambda: None  # called once a group has what it needs: the next one's may be fetched
    shared: Mapping[str, Tensor] = field(default_factory=dict)  # the method's tensors at the server
    model: Callable[[], nn.Module] = _none  # the whole model with `vector` in it; made when it is first asked for
    pool: Tensor | None = None  # the server's images, normalised
    kept: Tensor | None = None  # float64 [clients, numbers], on the CPU: the tallies that clients keep


@dataclass(frozen=True)
class Trained:
    """Lanes that have trained: valid until the backend goes on."""

    plan: GroupPlan
    state: LaneState
    losses: Tensor  # float64 [L]: each client's mean loss over its steps
    reports: Mapping[str, Tensor] = field(default_factory=dict)  # [L, *shape]: the method's small uploads
    kept: Tensor | None = None  # float64 [L, numbers]: the tallies that the clients keep


class Backend(Protocol):
    """How clients' local training is executed."""

    name: str
    lanes: int  # clients of the widest group

    def train(self, start: RoundStart, plan: GroupPlan) -> Iterator[Trained]:
        """Train a group's clients; some at a time, or all. Raises Interrupted."""
