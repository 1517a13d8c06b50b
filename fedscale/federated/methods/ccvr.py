"""CCVR. Luo et al., No Fear of Heterogeneity: Classifier Calibration for Federated Learning with Non-IID Data,
NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fedscale.config.method_options import CcvrOptions
from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.clients import Surveyed
from fedscale.federated.methods.base import Method, Problem, ServerWork
from fedscale.federated.methods.features import as_state, check_head, head_of, train_head_
from fedscale.rng import torch_generator

HELD = 12  # of a survey's sums at a time: a group's clients, and what they are added up in


class CCVR(Method):
    """FedAvg, and after its last round a classifier trained on virtual features of each class's Gaussian.

    1. At the final global model each client tells, for each class, how many samples it has, the sum of their features
       and of the features' products, float64. Added up they give what equations 3 and 4 make of the clients' means and
       covariances: those of all samples of a class together.
    2. The server draws as many features of each class that anybody holds and trains the global classifier on them. A
       class of one sample is given the mean covariance of all classes [D].
    """

    name = "ccvr"
    citation = "Luo et al., NeurIPS 2021, arXiv:2106.05001"
    extra_cost = (
        "client: one forward pass over its images, after the last round; upload: mean and covariance of each class's "
        "features, once; server: a classifier trained on virtual features, once"
    )
    Options = CcvrOptions
    options: CcvrOptions
    survey_at = ("end",)
    unsent = ("head", "trained")

    def __init__(self, config: FederateConfig, problem: Problem | None = None) -> None:
        super().__init__(config, problem)
        classes, width = self.problem.num_classes, self.problem.feature_dim
        products = (classes, width, width) if self.options.covariance == "full" else (classes, width)
        self.surveys = {"counts": (classes,), "sums": (classes, width), "products": products}
        self.shared = {"head": (classes, width + 1), "trained": (1,)}

    def check(self, model: nn.Module, teacher: Mapping[str, Tensor]) -> None:
        from fedscale.federated.backends.memory import free_bytes  # only here: it imports the methods

        check_head(model, self.config.method)
        classes, width = self.problem.num_classes, self.problem.feature_dim
        each = width * width if self.options.covariance == "full" else width
        drawn = 3 * self.options.features * (width + 1) * next(model.parameters()).element_size()
        needed, free = classes * (HELD * 8 * each + drawn), free_bytes(next(model.parameters()).device)
        if needed > free:
            other = "features" if self.options.covariance == "diagonal" else "covariance=diagonal or fewer features"
            raise UserError(
                f"federate.options.covariance={self.options.covariance}: {classes} classes at {width} features and "
                f"{self.options.features} virtual ones each need {needed / 2**30:.1f} GiB, expected at most the "
                f"{free / 2**30:.1f} GiB that are free; choose {other}"
            )

    def survey(self, clients: Surveyed) -> None:
        told = clients.reports
        told["counts"].copy_(clients.counts)
        for seen in clients.under_global_model():
            features = seen.features.double()
            for place, rows in seen.by_class(clients.num_classes):
                own = features[rows]
                told["sums"][place] += own.sum(0)
                told["products"][place] += own.t() @ own if self.options.covariance == "full" else own.square().sum(0)

    @torch.no_grad()
    def surveyed(self, work: ServerWork) -> None:
        options, draws = self.options, torch_generator(work.seed, "virtual features")
        head = head_of(dict(work.model.named_parameters())).detach().clone()
        features, labels = [], []
        for label, (mean, covariance) in gaussians(**work.reports):
            noise = torch.randn(options.features, len(mean), generator=draws, dtype=torch.float64).to(mean.device)
            features.append((mean + spread(covariance, noise)).to(head))
            labels.append(torch.full((options.features,), label, device=head.device))
        train_head_(
            head,
            torch.cat(features),
            torch.cat(labels),
            options.epochs,
            options.batch_size,
            options.lr,
            draws,
            options.momentum,
        )
        work.shared["head"].copy_(head)
        work.shared["trained"].fill_(1)

    def judged(self, state: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return as_state(shared["head"]) if shared["trained"].any() else {}


def gaussians(counts: Tensor, sums: Tensor, products: Tensor) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Mean [D] and covariance ([D, D], or the variances [D]) of each class that has samples, with its number.

    Of counts [C], sums [C, D] and sums of products [C, D, D] or of squares [C, D], all float64.
    """

    def scatter(label: int) -> Tensor:
        mean = sums[label] / counts[label]
        return products[label] - counts[label] * (torch.outer(mean, mean) if products.dim() == 3 else mean.square())

    held = [label for label, count in enumerate(counts.tolist()) if count > 0]
    several = [label for label in held if counts[label] > 1]
    common = torch.zeros_like(products[0])
    if len(several) < len(held):
        freedom = (counts[several] - 1).sum() if several else 1
        common = sum((scatter(label) for label in several), common) / freedom
    for label in held:
        covariance = scatter(label) / (counts[label] - 1) if counts[label] > 1 else common
        yield label, (sums[label] / counts[label], covariance)


def spread(covariance: Tensor, noise: Tensor) -> Tensor:
    """Normal noise [n, D] given a covariance [D, D], or variances [D].

    By the symmetric square root, which unlike eigenvectors or a Cholesky factor is continuous: singular covariances
    are ordinary (fewer samples than features), and a last digit of the sums may not turn what is drawn.
    """
    if covariance.dim() == 1:
        return noise * covariance.clamp(min=0).sqrt()
    values, vectors = torch.linalg.eigh(covariance)
    values = torch.where(values > len(values) * torch.finfo(values.dtype).eps * values[-1], values, 0.0)
    return noise @ (vectors * values.clamp(min=0).sqrt()) @ vectors.t()
