"""Logit adjustment is Menon et al.'s loss with the frequencies of all clients, or each client's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Batch, Problem, method_class
from tests.federated.engine_support import trained
from tests.federated.methods.support import (
    CLIENTS,
    Step,
    assert_a_saved_round_goes_on,
    assert_every_backend_trains,
    counts_of,
    engine_of,
)


def made(classes: int, **options: Any) -> Any:
    config = FederateConfig(method="logit_adjustment", options=options)
    return method_class("logit_adjustment")(config, Problem(classes, 0, 8))


def paper(counts: Tensor, tau: float, step: Step) -> Tensor:
    # Equation 10: log(1 + Σ_{y' ≠ y} (π_y'/π_y)^τ · exp(z_y' − z_y)), by numbers that may be 0.
    own = step.logits.gather(1, step.labels[:, None])
    ratios = (counts[None] / counts[step.labels][:, None]) ** tau
    others = torch.ones_like(step.logits).scatter(1, step.labels[:, None], 0.0)
    return torch.log1p((others * ratios * torch.exp(step.logits - own)).sum(1)).mean()


def surveyed(engine: Engine) -> None:
    engine.survey("start", 0)


@pytest.mark.parametrize("prior", ["local", "global"])
def test_every_backend_trains_as_the_papers_loss_says(prior: str, tmp_path: Path) -> None:
    def objective(engine: Engine, client: int, step: Step) -> Tensor:
        everyone = torch.stack([counts_of(engine, other) for other in CLIENTS]).sum(0)
        return paper(step.counts if prior == "local" else everyone, 0.8, step)

    options = {"tau": 0.8, "prior": prior}
    assert_every_backend_trains(tmp_path, objective, surveyed, method="logit_adjustment", options=options, momentum=0.5)


def test_the_paper_s_own_example_of_two_classes() -> None:
    # π = (0.9, 0.1), z = 0: the loss of the rare class is −log 0.1, of the frequent one −log 0.9.
    method = made(2)
    shared = {"shift": torch.log(torch.tensor([0.9, 0.1], dtype=torch.float64))}
    losses = method.loss(Batch(torch.zeros(1, 2, 2, dtype=torch.float64), torch.tensor([[0, 1]]), shared=shared))
    np.testing.assert_allclose(losses[0].numpy(), [-np.log(0.9), -np.log(0.1)], rtol=1e-12)


def test_the_classifier_that_minimises_it_is_balanced() -> None:
    # Every sample looks the same, 90 of one class and 10 of the other: frequencies say the first one, z says neither.
    labels = torch.tensor([[0] * 90 + [1] * 10])
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    method = made(2)
    shared = {"shift": method.shift(torch.tensor([90.0, 10.0]))}
    (gradient,) = torch.autograd.grad(
        method.loss(Batch(logits.expand(1, 100, 2), labels, shared=shared)).mean(), logits
    )
    torch.testing.assert_close(gradient, torch.zeros(2, dtype=torch.float64))


def test_a_class_without_a_sample_is_left_out_with_finite_gradients() -> None:
    method = made(4, prior="local", tau=2.0)
    shift = method.shift(torch.tensor([[5.0, 0.0, 3.0, 0.0], [0.0, 2.0, 1.0, 1.0]]))
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 2, 0], [1, 2, 3]])
    losses = method.loss(Batch(logits, labels, {"shift": shift}))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all() and gradient.isfinite().all()
    assert (gradient[0, :, [1, 3]] == 0).all() and (gradient[1, :, 0] == 0).all()
    assert (gradient[0, :, [0, 2]] != 0).all() and (gradient[1, :, 1:] != 0).all()


def test_the_survey_sums_the_counts_of_all_clients_with_samples(tmp_path: Path) -> None:
    engine = engine_of("loop", tmp_path, method="logit_adjustment")
    engine.survey("start", 0)
    everyone = torch.stack([counts_of(engine, client) for client in range(8)]).sum(0)
    torch.testing.assert_close(engine.server.shared["shift"], torch.log(everyone / everyone.sum()))


@pytest.mark.parametrize("prior", ["local", "global"])
def test_three_rounds_are_the_same_in_any_groups_and_after_a_restart(prior: str, tmp_path: Path) -> None:
    results = []
    for way in ("loop", "batched 3"):
        engine = engine_of(way, tmp_path, method="logit_adjustment", options={"prior": prior})
        engine.survey("start", 0)
        results.append(trained(engine))
    assert (results[0] - results[1]).abs().max() < 1e-9
    assert_a_saved_round_goes_on(tmp_path, method="logit_adjustment", options={"prior": prior})


def test_tau_of_zero_is_another_method() -> None:
    with pytest.raises(UserError, match=r"federate\.options\.tau=0.0: expected .*fedavg"):
        made(2, tau=0.0)
