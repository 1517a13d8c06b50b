"""What a method sees of clients beside their models: their samples, what they report, and what the server sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from fedscale.federated.data import RoundData, StagedGroup
from fedscale.federated.lanes.state import Blocks, LaneView
from fedscale.federated.plan import GroupPlan
from fedscale.models.resnet import Classifier

BATCH = 500  # images of a forward pass without gradients


@dataclass(frozen=True)
class Seen:
    """Samples of clients under the global model that the round began with, in evaluation mode; n of them."""

    lane: Tensor  # int64 [n]: whose it is
    labels: Tensor  # int64 [n]
    features: Tensor  # [n, D]
    logits: Tensor  # [n, C]

    def by_class(self, num_classes: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """(lane, label) of each client's class that is among them, and its samples' places, int64."""
        groups, group = torch.unique(self.lane * num_classes + self.labels, return_inverse=True)
        for number, key in enumerate(groups.tolist()):
            yield divmod(key, num_classes), (group == number).nonzero()[:, 0]


@dataclass
class Surveyed:
    """The clients of a plan, L of them, and what is known of their samples before they train."""

    plan: GroupPlan
    data: RoundData
    staged: StagedGroup
    model: Callable[[], nn.Module]  # the global model that the round begins with, not to be changed
    num_classes: int
    shared: Mapping[str, Tensor]  # the method's tensors at the server
    reports: Mapping[str, Tensor]  # [L, *shape], zero at first: what each client uploads beside its model

    @cached_property
    def counts(self) -> Tensor:
        """Each client's samples of each class, int64 [L, C]."""
        counts = [torch.bincount(self.staged.labels[rows], minlength=self.num_classes) for rows in self._rows]
        return torch.stack(counts)

    @torch.no_grad()
    def under_global_model(self) -> Iterator[Seen]:
        """Every sample once, not augmented, some at a time, in evaluation mode."""
        model = self.model()
        assert isinstance(model, Classifier), "a method that asks for features was given another model"
        lanes = torch.repeat_interleave(torch.arange(len(self._rows)), torch.tensor([len(r) for r in self._rows]))
        rows, lanes = torch.cat(self._rows), lanes.to(self.staged.labels.device)
        training = model.training
        model.eval()
        for start in range(0, len(rows), BATCH):
            some = slice(start, start + BATCH)
            images, labels = self.data.plain(self.staged, rows[some], next(model.parameters()).dtype)
            features = model.features(images)
            yield Seen(lanes[some], labels, features, model.classifier(features))
        model.train(training)

    @cached_property
    def _rows(self) -> list[Tensor]:
        """Each client's staged samples, in the order of its first epoch."""
        return [self.staged.rows[:batches, lane].reshape(-1)[:size] for lane, size, batches in self.plan.first_epochs()]


@dataclass
class Clients(Surveyed):
    """The clients of a plan with their lanes: before their first step, or after their last."""

    lanes: LaneView
    broadcast: Mapping[str, Blocks]  # the server's vectors as blocks [1, *shape]
    tallies: Mapping[str, Tensor]  # [L, *shape], zero at first: what a loss keeps of each client while it trains
    judged: Callable[[Tensor], Tensor]  # logits [L, n, C] of images [n, C, H, W] by the lanes' models, evaluation mode
    pool: Tensor | None = None  # the server's unlabelled images [N, C, H, W], normalised
    steps: Tensor = field(default_factory=lambda: torch.empty(0))  # float64 [L]: the clients' numbers of steps

    def pool_logits(self) -> Tensor:
        """The logits [L, N, C] of the server's images by each client's model as it is now, in evaluation mode."""
        assert self.pool is not None, "a method that asks for the pool has none"
        size = max(1, BATCH // len(self.lanes))
        return torch.cat([self.judged(part) for part in self.pool.split(size)], dim=1)
