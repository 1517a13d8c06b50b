"""FedYoYo. Yan et al., You Are Your Own Best Teacher (federated learning on long-tailed data), ICCV 2025."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedscale.config.method_options import YoyoOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.clients import Clients, Surveyed
from fedscale.federated.methods.base import Batch, Method, Problem, ServerWork, cross_entropy

BATCH = 32  # images of which a client tells how different they are at a time [C]
SMALLEST, LARGEST, LEAP = 1e-6, 1e4, 100.0  # of aᵀRa, of a first estimate, of its relative change in a round [C]


class FedYoYo(Method):
    """A client minimises CE(z̃) of two views of each image + λ·KL(p̃_weak ‖ p̃_strong), z̃ = z + log(π^τ + 10⁻⁹).

    DLA: π is the global class distribution with a share γ of the client's own. ASD: the KL is of softmax(z̃/T), its
    gradient through the strong view alone, its mean over the samples whose weak view is classified correctly; λ rises
    over `warmup` rounds. The global distribution needs no counts: before it trains, each client of a cohort sends a
    class's effective size at the global model, 1/(aᵀRa) a batch, R the cosines of centred features and a = 1/n.
    The views here are the weak one of all methods, and `federated.strong`.
    """

    name = "fedyoyo"
    citation = "Yan et al., ICCV 2025, arXiv:2503.06916"
    extra_cost = "client: twice the passes, and one forward pass over its images; upload: one number a class"
    Options = YoyoOptions
    options: YoyoOptions
    views = ("strong",)
    survey_at = ("round",)

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        shape = (self.problem.num_classes,)
        self.surveys = {"sizes": shape}
        self.shared = {"sizes": shape, "ramp": (1,)}
        self.tallies = {"prior": shape, "own": shape}

    def survey(self, clients: Surveyed) -> None:
        clients.reports["sizes"].copy_(effective_sizes(clients))

    def surveyed(self, work: ServerWork) -> None:
        before, found = work.shared["sizes"], 1.0 + work.reports["sizes"].to(work.shared["sizes"])
        kept = self.options.momentum
        if work.round == 1:
            large = found > LARGEST
            rest = torch.where(large, 0.0, found).sum() / (~large).sum().clamp(min=1)
            sizes = torch.where(large & ~large.all(), rest, found)
        else:
            sizes = kept * before + (1 - kept) * found
            sizes = torch.where((sizes - before).abs() > LEAP * before, before, sizes)
        work.shared["sizes"].copy_(sizes)
        work.shared["ramp"].fill_(min(work.round / self.options.warmup, 1.0))

    def init(self, clients: Clients) -> None:
        tallies, sizes = clients.tallies, clients.shared["sizes"]
        tallies["own"].copy_(clients.counts / clients.counts.sum(1, keepdim=True))
        tallies["prior"].copy_((sizes / sizes.sum()).expand_as(tallies["prior"]))
        self._mix(tallies)

    def loss(self, batch: Batch) -> Tensor:
        options, tallies, size = self.options, batch.tallies, batch.labels.shape[1]
        with torch.no_grad():
            shift = (tallies["prior"] ** options.tau + 1e-9).log().unsqueeze(1)
        weak, strong = batch.logits + shift, batch.views["strong"] + shift
        both = (cross_entropy(weak, batch.labels) + cross_entropy(strong, batch.labels)) / 2
        teacher = F.log_softmax(weak.detach() / options.temperature, dim=2)
        student = F.log_softmax(strong / options.temperature, dim=2)
        apart = (teacher.exp() * (teacher - student)).sum(2)
        right = (weak.detach().argmax(2) == batch.labels).to(apart.dtype)
        # So that the batch's mean is the mean over those that are right.
        share = right * size / right.sum(1, keepdim=True).clamp(min=1.0)
        return both + options.weight * batch.shared["ramp"] * share * apart

    def stepped(self, tallies: Mapping[str, Tensor]) -> None:
        if self.options.mixing == "per_step":
            self._mix(tallies)

    def _mix(self, tallies: Mapping[str, Tensor]) -> None:
        own = self.options.own_share
        tallies["prior"].mul_(1 - own).add_(tallies["own"], alpha=own)


def effective_sizes(clients: Surveyed) -> Tensor:
    """Σ over batches of 1/(aᵀRa), which is 1/‖the mean of centred features of length 1‖², float64 [L, C].

    A sample that is alone of its class in its batch counts as one.
    """
    seen = list(clients.under_global_model())
    lanes, labels = torch.cat([part.lane for part in seen]), torch.cat([part.labels for part in seen])
    features = torch.cat([part.features for part in seen])
    sizes = torch.zeros(len(clients.counts), clients.num_classes, dtype=torch.float64, device=features.device)
    for lane, counts in enumerate(clients.counts):
        own = lanes == lane
        mine, classes = features[own].double(), labels[own]
        means = mine.new_zeros(clients.num_classes, mine.shape[1]).index_add_(0, classes, mine)
        centred = mine - (means / counts.clamp(min=1).unsqueeze(1))[classes]
        directions = F.normalize(centred, dim=1)
        for batch, where in zip(directions.split(BATCH), classes.split(BATCH), strict=True):
            held = torch.bincount(where, minlength=clients.num_classes)
            summed = torch.zeros_like(means).index_add_(0, where, batch)
            alike = (summed / held.clamp(min=1).unsqueeze(1)).square().sum(1)
            sizes[lane] += torch.where(held > 1, 1 / alike.clamp(min=SMALLEST), held.double())
    return sizes
