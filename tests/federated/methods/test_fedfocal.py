"""Fed-Focal's clients minimise the focal loss, with finite gradients however sure they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedscale.config.schema import FederateConfig
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Batch, method_class
from tests.federated.engine_support import trained
from tests.federated.methods.support import Step, assert_every_backend_trains, engine_of


def made(**options: Any) -> Any:
    return method_class("fedfocal")(FederateConfig(method="fedfocal", options=options))


def test_every_backend_trains_as_the_papers_loss_says(tmp_path: Path) -> None:
    def objective(engine: Engine, client: int, step: Step) -> Tensor:
        p = torch.softmax(step.logits, 1).gather(1, step.labels[:, None])
        return (-((1 - p) ** 1.5) * p.log()).mean()

    assert_every_backend_trains(
        tmp_path, objective, lambda engine: None, method="fedfocal", options={"gamma": 1.5}, momentum=0.5
    )


def test_a_sample_of_probability_nine_tenths_counts_a_hundredth() -> None:
    # Lin et al. 2017, section 3.2: with γ = 2, p = 0.9 has a 100 times lower loss than with cross-entropy.
    logits = torch.log(torch.tensor([[[0.9, 0.1], [0.5, 0.5]]], dtype=torch.float64))
    losses = made().loss(Batch(logits, torch.zeros(1, 2, dtype=torch.int64)))
    np.testing.assert_allclose(losses[0], [-np.log(0.9) / 100, -np.log(0.5) / 4], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_are_finite_where_nothing_is_missing_and_where_all_is(gamma: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[[1e4, 0.0], [-1e4, 0.0], [60.0, 0.0]]], dtype=dtype, requires_grad=True)
    losses = made(gamma=gamma).loss(Batch(logits, torch.zeros(1, 3, dtype=torch.int64)))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(gradient[0, 1], torch.tensor([-1.0, 1.0], dtype=dtype))


def test_three_rounds_are_the_same_in_any_groups(tmp_path: Path) -> None:
    loop, batched = (trained(engine_of(way, tmp_path, method="fedfocal")) for way in ("loop", "batched 3"))
    assert (loop - batched).abs().max() < 1e-9
    assert (loop - trained(engine_of("loop", tmp_path))).abs().max() > 1e-4, "it is not FedAvg"
