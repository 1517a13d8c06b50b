"""CReFF. Shang et al., Federated Learning on Heterogeneous and Long-Tailed Data via Classifier Re-Training with
Federated Features, IJCAI 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedscale.config.method_options import CreffOptions
from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.clients import Clients
from fedscale.federated.methods.base import Method, Problem, ServerWork
from fedscale.federated.methods.features import (
    Targets,
    add_class_gradients,
    as_state,
    check_head,
    initial_head,
    match_,
    train_head_,
)
from fedscale.rng import torch_generator

MOST_BYTES = 2 << 30  # of one client's gradients


class CReFF(Method):
    """Server features whose gradients match the clients' ones of the classifier, and a head re-trained on them.

    1. Before training, a client tells the mean gradient of the re-trained head over its samples of each class, at the
       features of the global model. All samples, not augmented [D]: that is the paper's definition; the official code
       draws 10 times up to 32 of them, with one augmentation for all.
    2. The server takes the plain mean over the clients that hold a class [C], and moves that class's `features`
       synthetic features, kept from round to round, by `match_steps` steps on the sum of 1 − cosine (`match_`).
    3. A new head is trained on all of them from its own random weights; it is the one that is evaluated, and at which
       the next round's gradients are taken. The model that clients train is FedAvg's.
    """

    name = "creff"
    citation = "Shang et al., IJCAI 2022, arXiv:2204.13399"
    extra_cost = (
        "client: one forward pass over its images; upload: the classifier's gradient of each class; "
        "server: features and a head trained every round"
    )
    Options = CreffOptions
    options: CreffOptions
    unsent = ("features", "trained")

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        classes, width = self.problem.num_classes, self.problem.feature_dim
        size = 4 * classes * classes * (width + 1)
        if size > MOST_BYTES:
            raise UserError(
                f"federate.method={config.method}: the classifier's gradients of {classes} classes at {width} features "
                f"are {size / 2**30:.1f} GiB a client, expected at most {MOST_BYTES / 2**30:.0f} GiB; narrow the "
                "features by model.projection"
            )
        self.reports = {"gradients": (classes, classes, width + 1), "present": (classes,)}
        self.shared = {
            "head": (classes, width + 1),
            "features": (classes, self.options.features, width),
            "trained": (1,),
        }

    def check(self, model: nn.Module, teacher: Mapping[str, Tensor]) -> None:
        check_head(model, self.config.method)

    def first_shared(self, shared: Mapping[str, Tensor], seed: int) -> None:
        draws = torch_generator(seed, "features")
        features = shared["features"]
        features.copy_(torch.randn(features.shape, generator=draws, dtype=torch.float64))
        shared["head"].copy_(initial_head(len(features), features.shape[2], draws))

    def init(self, clients: Clients) -> None:
        add_class_gradients(clients, clients.shared["head"], clients.reports["gradients"])
        clients.reports["present"].copy_(clients.counts > 0)

    @torch.no_grad()
    def server_work(self, work: ServerWork) -> None:
        options, shared = self.options, work.shared
        features, head, told = shared["features"], shared["head"], work.reports["present"]
        present = told > 0  # a share of the clients; the mean over those that hold the class divides by it
        gradients = work.reports["gradients"] / torch.where(present, told, 1.0)[:, None, None]
        targets = Targets(gradients.to(features), present.to(features))
        match_(features, head, targets, options.match_steps, options.match_lr, self.pull(work))
        draws = torch_generator(work.seed, "head")
        classes, each, width = features.shape
        head.copy_(initial_head(classes, width, draws))
        labels = torch.arange(classes, device=features.device).repeat_interleave(each)
        train_head_(
            head, features.flatten(0, 1), labels, options.head_epochs, options.head_batch, options.head_lr, draws
        )
        shared["trained"].fill_(1)

    def pull(self, work: ServerWork) -> Callable[[Tensor], Tensor] | None:
        """A further gradient by the features."""
        return None

    def judged(self, state: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return as_state(shared["head"]) if shared["trained"].any() else {}
