"""Ratio Loss. Wang, Xu, Wang, Zhu, Addressing Class Imbalance in Federated Learning, AAAI 2021."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedscale.config.method_options import RatioOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.methods.base import Batch, Method, Problem, ServerWork, cross_entropy
from fedscale.models.resnet import Classifier
from fedscale.rng import torch_generator

NO_WEIGHT = 10.0  # the ratio of a class that no weight tells from the others [C]


class RatioLoss(Method):
    """A client minimises (α + β·R_y)·CE, R_c how much more than others' images class c's move the weights it owns.

    The server trains a copy of the global model on each class's images of its own (by the crawl's keyword), as clients
    train, and compares the changes of the classifier's weights. It does so after a round, with the model that the next
    one begins with; round 1 has plain cross-entropy. Models are averaged by samples, in the official code equally.
    """

    name = "ratio_loss"
    citation = "Wang et al., AAAI 2021, arXiv:2008.06217"
    extra_cost = "server: local training on some images of each class, once a class and round"
    Options = RatioOptions
    options: RatioOptions
    pool_balanced = True

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        self.pool_images = self.options.images_per_class * self.problem.num_classes
        self.shared = {"excess": (self.problem.num_classes,)}  # α + β·R − 1, zeros in round 1

    def loss(self, batch: Batch) -> Tensor:
        return (1 + batch.shared["excess"][batch.labels]) * cross_entropy(batch.logits, batch.labels)

    def server_work(self, work: ServerWork) -> None:
        assert work.pool is not None and work.pool_labels is not None
        changes = []
        for label in range(self.problem.num_classes):
            images = work.pool[work.pool_labels == label]
            changes.append(self._change(work, images, label))
        options = self.options
        ratio = ratios(torch.stack(changes), options.threshold).clamp(max=options.cap)
        work.shared["excess"].copy_(options.alpha + options.beta * ratio - 1)

    def _change(self, work: ServerWork, images: Tensor, label: int) -> Tensor:
        """What local training on one class's images changes of the classifier's weights [C, D]."""
        settings, model = self.config, copy.deepcopy(work.model).train()
        assert isinstance(model, Classifier)
        before, labels = model.classifier.weight.detach().clone(), images.new_full((len(images),), label).long()
        optimizer = torch.optim.SGD(
            model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
        )
        generator = torch_generator(work.seed, "ratio loss", label)
        for _ in range(settings.local_epochs):
            order = torch.randperm(len(images), generator=generator).to(images.device)
            for batch in order.split(settings.batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
        return model.classifier.weight.detach() - before


def ratios(changes: Tensor, threshold: float) -> Tensor:
    """R [C] of the weights' changes by each class [C, rows, columns].

    A weight is owned by the class that moves it most, upwards, unless another class moves it (either way) by more than
    `threshold` of that. R_c = |Σ of c's own changes| / |Σ of the other classes' mean changes|, over the weights of c.
    """
    classes = len(changes)
    most, owner = changes.max(0)
    near = torch.where(most == 0, changes == 0, changes.abs() > threshold * most.abs()).sum(0)
    owned = (owner == torch.arange(classes, device=changes.device)[:, None, None]) & (near < 2)
    others = (changes.sum(0) - changes) / (classes - 1)
    own, rest = (torch.where(owned, part, 0.0).sum((1, 2)).abs() for part in (changes, others))
    return torch.where(rest > 0, own / rest, NO_WEIGHT)
