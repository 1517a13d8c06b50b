"""CLIP2FL is CReFF, a client's distillation from CLIP, and a contrast of the server's features to CLIP's texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Batch, Problem, ServerWork, method_class
from tests.federated.methods.support import (
    Step,
    assert_a_saved_round_goes_on,
    assert_every_backend_trains,
)

OPTIONS = {"features": 6, "match_steps": 5, "head_epochs": 3, "head_batch": 4, "alpha": 0.7, "temperature": 2.0}


def made(width: int = 6, **options: Any) -> Any:
    return method_class("clip2fl")(FederateConfig(method="clip2fl", options=options), Problem(3, width, 8))


def official(engine: Engine, client: int, step: Step) -> Tensor:
    # KLDivLoss(batchmean) of log_softmax(student / T) and softmax(teacher / T), times T², beside cross-entropy.
    teacher = engine.data.side["clip"][step.rows].double()
    divergence = F.kl_div(F.log_softmax(step.logits / 2, 1), F.softmax(teacher / 2, 1), reduction="batchmean")
    return F.cross_entropy(step.logits, step.labels) + 0.7 * divergence * 2.0**2


def test_every_backend_trains_by_cross_entropy_and_the_distance_to_clip(tmp_path: Path) -> None:
    options = {"method": "clip2fl", "options": OPTIONS, "augment": "none"}
    assert_every_backend_trains(tmp_path, official, lambda engine: None, **options)


def test_the_loss_is_one_graph_without_a_break() -> None:
    method = made(alpha=0.7)

    def loss(logits: Tensor, labels: Tensor, clip: Tensor) -> Tensor:
        return method.loss(Batch(logits, labels, side={"clip": clip}))

    batch = torch.randn(2, 5, 3), torch.tensor([[0, 1, 2, 0, 1]] * 2), torch.randn(2, 5, 3)
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(*batch), loss(*batch))


def test_a_client_that_sees_as_clip_does_has_cross_entropy_alone_to_minimise() -> None:
    logits = torch.randn(2, 5, 3, dtype=torch.float64)
    batch = Batch(logits, torch.tensor([[0, 1, 2, 0, 1]] * 2), side={"clip": logits + 4.0})
    losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view(2, 5)
    assert (made().loss(batch) - losses).abs().max() < 1e-12


def contrast(features: Tensor, texts: Tensor, tau: float) -> Tensor:
    """The official code's loss: each text once for every feature of its class, that at its own place aside."""
    classes, each, width = features.shape
    anchors, labels = features.reshape(-1, width), torch.arange(classes).repeat_interleave(each)
    likeness = anchors @ texts[labels].T / tau
    others = ~torch.eye(len(anchors), dtype=torch.bool)
    log_share = likeness - torch.logsumexp(likeness.masked_fill(~others, -torch.inf), 1, keepdim=True)
    positive = (labels[:, None] == labels) & others
    return -((log_share * positive).sum(1) / positive.sum(1)).mean()


def test_the_features_descend_the_official_contrast_to_clips_texts() -> None:
    options = {"features": 4, "prototype_weight": 0.5, "prototype_temperature": 0.3}
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 6, generator=draws, dtype=torch.float64, requires_grad=True)
    texts = F.normalize(torch.randn(3, 6, generator=draws, dtype=torch.float64), dim=1)
    (wanted,) = torch.autograd.grad(0.5 * contrast(features, texts, 0.3), features)
    shared = {"features": features.detach()}
    work = ServerWork(nn.Identity(), shared, {}, {}, 8, 1, 0, None, None, {"clip": texts})
    found = made(**options).pull(work)(features.detach())
    assert (found - wanted).abs().max() < 1e-12


def test_features_are_drawn_to_their_own_text_where_no_client_has_their_class() -> None:
    method = made(4, features=5, prototype_weight=50.0, head_epochs=1, match_steps=300)
    shared = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in method.shared.items()}
    method.first_shared(shared, 3)
    reports = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in method.reports.items()}
    texts = torch.eye(3, 4, dtype=torch.float64)
    method.server_work(ServerWork(nn.Identity(), shared, reports, {}, 8, 1, 0, None, None, {"clip": texts}))
    assert torch.equal((shared["features"] @ texts.T).argmax(2), torch.arange(3)[:, None].expand(3, 5))


def test_a_saved_round_goes_on_with_its_features_and_head(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, method="clip2fl", options=OPTIONS)


def test_features_of_another_width_than_clips_are_refused_with_the_remedy() -> None:
    model = nn.Module()
    model.classifier = nn.Linear(6, 3)
    with pytest.raises(UserError, match=r"features are 6 wide, CLIP's embeddings 512; set model\.projection=512"):
        made(6).check(model, {"clip": torch.zeros(3, 512)})
