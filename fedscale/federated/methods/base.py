"""What a method is: pure functions init / step / final of a client, what it uploads, and what the server does.

A method knows nothing of devices, batches, backends or ranks. Its arithmetic is on blocks of L clients at once, or on
flat vectors at the server. Sizes that depend on the data (`problem`) are known when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.method_options import NoOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.clients import Clients, Surveyed
from fedscale.federated.lanes.state import Blocks, LaneView

Shapes = dict[str, tuple[int, ...]]
S = TypeVar("S", float, Tensor)


@dataclass(frozen=True)
class Problem:
    """What is learned: the classes, the inputs of the classifier (0 where the model names none), the clients."""

    num_classes: int = 0
    feature_dim: int = 0
    num_clients: int = 0


@dataclass(frozen=True)
class Batch:
    """One step of L clients with B samples each, as a loss sees it."""

    logits: Tensor  # [L, B, C]
    labels: Tensor  # int64 [L, B]
    tallies: Mapping[str, Tensor] = field(default_factory=dict)  # [L, *shape], what the clients keep while they train
    shared: Mapping[str, Tensor] = field(default_factory=dict)  # the method's tensors at the server
    side: Mapping[str, Tensor] = field(default_factory=dict)  # [L, B, …], by `Method.sides`
    features: Tensor | None = None  # [L, B, D], where `Method.uses_features`
    others: Mapping[str, Tensor] = field(default_factory=dict)  # features [L, B, D] by the models of `Method.compares`
    views: Mapping[str, Tensor] = field(default_factory=dict)  # logits [L, B, C] of the views of `Method.views`


@dataclass(frozen=True)
class Server:
    """What the server's update works on: parameters, or this rank's share of them; every operation is element-wise."""

    vector: Tensor  # the global parameters before this round
    state: dict[str, Tensor]  # `server_state` by name, updated in place
    participation: float  # cohort / clients
    round: int
    sizes: Sequence[int] = ()  # samples of the clients that are in the means
    steps: Sequence[int] = ()  # and their numbers of steps


@dataclass
class ServerWork:
    """What the server's own training works on, once a round, on one rank."""

    model: nn.Module  # the new global model, on the device; a method that `refines` it changes it in place
    shared: dict[str, Tensor]  # changed in place; all ranks and the next round's clients see it
    reports: Mapping[str, Tensor]  # float64: the clients' mean, or (of a survey) the sum over all clients
    vectors: Mapping[str, Mapping[str, Tensor]]  # the server's vectors of `inspects`, by parameter
    num_clients: int  # that are in the means
    round: int
    seed: int  # the round's own, of all that is drawn here
    pool: Tensor | None  # normalised images [N, C, H, W], where `pool_images`
    pool_labels: Tensor | None  # int64 [N]: the class that the crawl's keyword names, or -1
    teacher: Mapping[str, Tensor]  # constants of the run: `clip` [C, E], CLIP's embeddings of the class prompts


class Method:
    """FedAvg's client and server; a method overrides what it changes."""

    name = ""  # in messages; the class's own, in small letters, unless it says another
    citation = ""
    extra_cost = "none"  # beyond FedAvg, one line: "client: …; upload: …; server: …", those that there are
    Options: type = NoOptions  # the dataclass of `federate.options`
    options: Any

    # What a client holds in the shape of its model
    roles: tuple[str, ...] = ()  # buffers of every lane, [L, *shape] a parameter; "start" is filled with the globals
    models: tuple[str, ...] = ()  # those of the roles that are whole models, with statistics
    client_state: tuple[str, ...] = ()  # those that a client keeps; at first zeros, or the global one of a model
    uploads: tuple[str, ...] = ()  # those whose plain mean over the cohort the server gets, beside the models'
    server_state: tuple[str, ...] = ()  # vectors that the server keeps
    broadcast: tuple[str, ...] = ()  # those of them that `init` reads
    inspects: tuple[str, ...] = ()  # those of them that `server_work` reads
    keeps: tuple[str, ...] = ()  # tallies that a client keeps from round to round, zero at first

    # What a step's loss needs beside logits and labels
    uses_features = False
    compares: tuple[str, ...] = ()  # models whose features of the same images it is given
    sides: tuple[str, ...] = ()  # numbers kept for each sample: "clip", CLIP's logits of the classes
    views: tuple[str, ...] = ()  # logits of other views of the same images: "strong" (federated.strong)

    # What the server does beside averaging
    pool_images = 0  # images of the open pool that it is given
    pool_balanced = False  # as many of each class (by the crawl's keywords), or any
    refines = False  # whether `server_work` changes the global model
    survey_at: tuple[str, ...] = ()  # when `survey` asks: "start", "end" of all rounds all clients, "round" its cohort
    unsent: tuple[str, ...] = ()  # uploads, reports and shared that are made where they are used, which no network sees

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.name = cls.__dict__.get("name") or cls.__name__.lower()

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        self.config, self.problem = config, problem or Problem()
        self.options = type(self).Options(**config.options)
        # Small tensors by name, with their shapes:
        self.tallies: Shapes = {}  # what each client's loss keeps while it trains
        self.reports: Shapes = {}  # what each client uploads in a round beside its model
        self.surveys: Shapes = {}  # what each client tells a survey
        self.shared: Shapes = {}  # what the server keeps and sends to clients, zero at first

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` changes gradients; a step without it is cheaper."""
        return type(self).adjust is not Method.adjust

    @property
    def works(self) -> bool:
        """Whether the server trains something of its own after a round."""
        return type(self).server_work is not Method.server_work

    def check(self, model: nn.Module, teacher: Mapping[str, Tensor]) -> None:
        """Before the first round. Raises UserError where the model, the run's constants or the memory do not do."""

    def first_shared(self, shared: Mapping[str, Tensor], seed: int) -> None:
        """Fill `shared` (zeros) with what the first round begins with: the same on every rank, by `seed` alone."""

    # ---- a client

    def weight(self, num_samples: int) -> float:
        """The client's weight in the mean of the models."""
        return float(num_samples)

    def init(self, clients: Clients) -> None:
        """Before a client's first step."""

    def loss(self, batch: Batch) -> Tensor:
        """Each sample's loss [L, B]; a client minimises its batch's mean."""
        return cross_entropy(batch.logits, batch.labels)

    def adjust(self, lanes: LaneView, gradients: Blocks) -> None:
        """Change the gradients of a step in place."""

    def stepped(self, tallies: Mapping[str, Tensor]) -> None:
        """After a step: change the clients' tallies [L, *shape] in place.

        What a loss has read it should change here: torch.compile may read it again in the backward pass.
        """

    def final(self, clients: Clients) -> None:
        """After a client's last step."""

    def survey(self, clients: Surveyed) -> None:
        """Fill `reports` (of `surveys`) of clients that do not train."""

    # ---- the server

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        """The next global parameters, from the weighted mean of the clients' and the means of the uploads."""
        return mean

    def server_work(self, work: ServerWork) -> None:
        """What the server trains after the means of a round are known."""

    def surveyed(self, work: ServerWork) -> None:
        """What the server makes of a survey."""

    def judged(self, state: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that take the place of the global model's (`state`, by name) when it is evaluated, and at the end."""
        return {}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Each sample's cross-entropy [L, B]; logits [L, B, C], labels [L, B]."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def weight_of_steps(steps: S, momentum: float) -> S:
    """‖a‖₁, what the gradients of so many steps weigh together in a client's change (FedNova, section 4).

    Without momentum it is their number K, with momentum ρ it is Σ (1 − ρ^k)/(1 − ρ) over k = 1 … K.
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def zeros(shapes: Shapes, like: Tensor, *front: int) -> dict[str, Tensor]:
    """A tensor of zeros for each shape, with `front` dimensions before its own."""
    return {name: torch.zeros(*front, *shape, dtype=like.dtype, device=like.device) for name, shape in shapes.items()}
