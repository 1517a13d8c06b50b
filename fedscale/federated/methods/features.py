"""A classifier that the server trains on features, in closed form, without autograd.

A head is one tensor [C, D + 1], the bias behind the weights. With p = softmax(W·s + b) the gradient of cross-entropy at
a feature s of class c is (p − e_c) ⊗ [s, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.errors import UserError
from fedscale.federated.clients import Surveyed

EPSILON = 1e-6  # beside |A|·|B| in a cosine [C: CReFF]


def with_ones(features: Tensor) -> Tensor:
    """[…, D] with a 1 behind each, which the bias is the weight of."""
    return F.pad(features, (0, 1), value=1.0)


def initial_head(classes: int, width: int, draws: torch.Generator) -> Tensor:
    """A head [C, D + 1] as torch.nn.Linear draws one, U(−1/√D, 1/√D), float64 on the CPU."""
    uniform = torch.rand(classes, width + 1, generator=draws, dtype=torch.float64)
    return (2 * uniform - 1) / math.sqrt(max(width, 1))


def head_of(state: Mapping[str, Tensor]) -> Tensor:
    """The head [C, D + 1] of a model's tensors by name."""
    return torch.cat([state["classifier.weight"], state["classifier.bias"][:, None]], dim=1)


def check_head(model: nn.Module, method: str) -> None:
    """Raises UserError for a classifier without a bias, which is no such head."""
    if model.classifier.bias is None:  # type: ignore[union-attr]
        raise UserError(
            f"federate.method={method}: needs a classifier with a bias, found one without; choose another model"
        )


def as_state(head: Tensor) -> dict[str, Tensor]:
    """A head by the names of a model's tensors."""
    return {"classifier.weight": head[:, :-1], "classifier.bias": head[:, -1]}


def add_class_gradients(clients: Surveyed, head: Tensor, gradients: Tensor) -> None:
    """Add to `gradients` [L, C, C, D + 1], of each client and class, the mean gradient of the head over its samples.

    The features are the global model's of every sample, not augmented, in evaluation mode.
    """
    classes, shares = head.shape[0], 1 / clients.counts.clamp(min=1).to(head.dtype)
    for seen in clients.under_global_model():
        features = with_ones(seen.features)
        errors = (features @ head.t()).softmax(1) - F.one_hot(seen.labels, classes)
        errors = errors * shares[seen.lane, seen.labels][:, None]
        for place, rows in seen.by_class(classes):
            gradients[place].addmm_(errors[rows].t(), features[rows])


class Targets(NamedTuple):
    """What the gradients of synthetic features should be like."""

    gradients: Tensor  # [C, C, D + 1]: of each class, those of the head's rows and of the bias
    present: Tensor  # [C]: 1 where there is one, 0 for a class whose features stay as they are


def match_(
    features: Tensor,
    head: Tensor,
    targets: Targets,
    steps: int,
    lr: float,
    pull: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Move `features` [C, n, D] in place, n of each class, so that their gradients are like the targets.

    Each step descends, for all classes at once, Σ_c Σ_j (1 − cos(A_cj, B_cj)) + Σ_c (1 − cos(a_c, b_c)): A_cj is row j
    of the weights' mean gradient over class c's features, a_c the bias's; B and b are the targets'. `pull` gives a
    further gradient [C, n, D] of the features.
    """
    classes, each, width = features.shape
    flat, weights, bias = features.view(-1, width), head[:, :-1].contiguous(), head[:, -1].contiguous()
    wanted = targets.gradients[..., :-1].contiguous(), targets.gradients[..., -1].contiguous()
    sizes = [part.norm(dim=-1, keepdim=True) for part in wanted]
    share = (targets.present / each).view(-1, 1, 1)
    for _ in range(steps):
        p = torch.addmm(bias, flat, weights.t()).softmax(1).view(classes, each, -1)
        errors = p.clone()
        errors.diagonal(dim1=0, dim2=2).sub_(1)
        found = torch.bmm(errors.transpose(1, 2), features).div_(each), errors.mean(1)
        # u: of the distances by A (times share: by the errors and, through them, by the features)
        by_weights, by_bias = (_cosine_slope(a, b, size) for a, b, size in zip(found, wanted, sizes, strict=True))
        by_weights, by_bias = by_weights.mul_(share), by_bias[:, None].mul(share)
        by_errors = torch.baddbmm(by_bias, features, by_weights.transpose(1, 2))
        by_logits = p.mul_(by_errors - (p * by_errors).sum(2, keepdim=True))
        further = pull(features) if pull else None
        features.baddbmm_(errors, by_weights, alpha=-lr)
        flat.addmm_(by_logits.view(classes * each, -1), weights, alpha=-lr)
        if further is not None:
            features.sub_(further, alpha=lr)


def _cosine_slope(a: Tensor, b: Tensor, size: Tensor) -> Tensor:
    """The gradient by `a` […, D] of 1 − ⟨a, b⟩ / (|a|·|b| + ε), where `size` […, 1] is |b|."""
    own = a.norm(dim=-1, keepdim=True)
    below = own * size + EPSILON
    along = (a * b).sum(-1, keepdim=True) * size / (below.square() * own.clamp(min=torch.finfo(a.dtype).tiny))
    return along * a - b / below


def train_head_(
    head: Tensor,
    features: Tensor,
    labels: Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    draws: torch.Generator,
    momentum: float = 0.0,
) -> None:
    """Train `head` [C, D + 1] in place by SGD on features [N, D] of labels [N]; the order is drawn once an epoch."""
    inputs, wanted = with_ones(features), F.one_hot(labels, len(head)).to(features.dtype)
    velocity = torch.zeros_like(head)
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=draws).to(features.device)
        for x, y in zip(inputs[order].split(batch_size), wanted[order].split(batch_size), strict=True):
            # Classes lie in front: product and softmax together take half the time of [batch, classes] on a CPU.
            errors = head.mm(x.t()).softmax(0).sub_(y.t())
            if momentum:
                velocity.addmm_(errors, x, beta=momentum, alpha=1 / len(x))
                head.sub_(velocity, alpha=lr)
            else:
                head.addmm_(errors, x, alpha=-lr / len(x))
