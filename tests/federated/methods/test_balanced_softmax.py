"""Balanced Softmax is Ren et al.'s loss with each client's own class counts, or those of all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedscale.config.schema import FederateConfig
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


def made(name: str, classes: int, **options: Any) -> Any:
    return method_class(name)(FederateConfig(method=name, options=options), Problem(classes, 0, 8))


@pytest.mark.parametrize("prior", ["local", "global"])
def test_every_backend_trains_as_the_papers_loss_says(prior: str, tmp_path: Path) -> None:
    def objective(engine: Engine, client: int, step: Step) -> Tensor:
        everyone = torch.stack([counts_of(engine, other) for other in CLIENTS]).sum(0)
        counts = step.counts if prior == "local" else everyone
        # Equation 4: −log(n_y·exp z_y / Σ_c n_c·exp z_c).
        weighted = counts * torch.exp(step.logits)
        return -(weighted.gather(1, step.labels[:, None])[:, 0] / weighted.sum(1)).log().mean()

    def begin(engine: Engine) -> None:
        engine.survey("start", 0)

    assert_every_backend_trains(tmp_path, objective, begin, method="balanced_softmax", options={"prior": prior})


def test_the_counts_of_all_clients_are_menon_s_loss_with_tau_one() -> None:
    counts = torch.tensor([90.0, 9.0, 1.0], dtype=torch.float64)
    logits, labels = torch.randn(2, 5, 3, dtype=torch.float64), torch.randint(0, 3, (2, 5))
    losses = []
    for name in ("balanced_softmax", "logit_adjustment"):
        method = made(name, 3, prior="global")
        losses.append(method.loss(Batch(logits, labels, shared={"shift": method.shift(counts)})))
    torch.testing.assert_close(losses[0], losses[1])


def test_clients_of_different_counts_have_one_best_model() -> None:
    # All samples look alike; by their frequencies clients want different logits, by this loss all want equal ones.
    method = made("balanced_softmax", 2)
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    shift = method.shift(torch.tensor([[9.0, 1.0], [2.0, 8.0]], dtype=torch.float64))
    labels = torch.tensor([[0] * 9 + [1], [0] * 2 + [1] * 8])
    for lane in range(2):
        losses = method.loss(Batch(logits.expand(2, 10, 2), labels, {"shift": shift}))[lane]
        (gradient,) = torch.autograd.grad(losses.mean(), logits)
        torch.testing.assert_close(gradient, torch.zeros(2, dtype=torch.float64))


def test_three_rounds_are_the_same_in_any_groups_and_after_a_restart(tmp_path: Path) -> None:
    loop, batched = (trained(engine_of(way, tmp_path, method="balanced_softmax")) for way in ("loop", "batched 3"))
    assert (loop - batched).abs().max() < 1e-9
    assert_a_saved_round_goes_on(tmp_path, method="balanced_softmax")
