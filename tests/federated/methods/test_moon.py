"""MOON draws a client's features to the global model's and away from those of its own last model."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Batch, Problem, method_class
from tests.federated.engine_support import SIZES, trained
from tests.federated.methods.support import (
    Step,
    assert_a_saved_round_goes_on,
    assert_rounds_are,
    engine_of,
    global_model,
    plainly,
    state_of,
)

OPTIONS = {"mu": 2.0, "temperature": 0.4}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt())


def test_three_rounds_of_every_backend_are_the_papers(tmp_path: Path) -> None:
    previous: dict[int, Any] = {}

    def algorithm(engine: Engine, number: int) -> Mapping[str, Tensor]:
        anchor, cohort, models = global_model(engine).eval(), engine.cohort(number), {}
        for client in cohort:
            last = previous.get(client, anchor)

            def objective(step: Step, last: Any = last) -> Tensor:
                with torch.no_grad():
                    to_global, to_last = anchor.features(step.images), last.features(step.images)
                near, far = (torch.exp(cosine(step.features, other) / 0.4) for other in (to_global, to_last))
                contrast = -torch.log(near / (near + far))
                return nn.functional.cross_entropy(step.logits, step.labels) + 2.0 * contrast.mean()

            models[client] = plainly(engine, client, objective, number)
        states = {client: state_of(model) for client, model in models.items()}
        previous.update({client: copy.deepcopy(model).eval() for client, model in models.items()})
        total = sum(SIZES[client] for client in cohort)
        return {n: sum(SIZES[c] / total * states[c][n] for c in cohort) for n in state_of(anchor)}

    assert_rounds_are(tmp_path, algorithm, method="moon", options=OPTIONS)


def test_a_known_pair_of_cosines() -> None:
    # h is the global model's feature and orthogonal to the last model's: ℓ = log(1 + e^(−1/τ)) = log(1 + e^−2).
    method = method_class("moon")(FederateConfig(method="moon"), Problem(2, 2, 8))
    h, orthogonal = (torch.tensor([[v]], dtype=torch.float64) for v in ([3.0, 0.0], [0.0, 5.0]))
    logits = torch.zeros(1, 1, 2, dtype=torch.float64)
    others = {"start": 2 * h, "previous": orthogonal}
    losses = method.loss(Batch(logits, torch.tensor([[0]]), features=h, others=others))
    np.testing.assert_allclose(losses, np.log(2) + np.log(1 + np.exp(-2)), rtol=1e-12)


def test_features_of_zeros_have_finite_gradients() -> None:
    method = method_class("moon")(FederateConfig(method="moon"), Problem(2, 4, 8))
    features = torch.zeros(1, 3, 4, dtype=torch.float64, requires_grad=True)
    others = {role: torch.rand(1, 3, 4, dtype=torch.float64) for role in ("start", "previous")}
    batch = Batch(features[..., :2], torch.tensor([[0, 1, 0]]), features=features, others=others)
    (gradient,) = torch.autograd.grad(method.loss(batch).sum(), features)
    assert gradient.isfinite().all()


def test_a_clients_first_round_is_fedavgs_and_its_second_is_not(tmp_path: Path) -> None:
    options = {"mu": 5.0}
    plain, contrasted = (
        engine_of("loop", tmp_path / "plain"),
        engine_of("loop", tmp_path, method="moon", options=options),
    )
    assert (trained(plain, [1]) - trained(contrasted, [1])).abs().max() < 1e-9
    assert (trained(plain, [2]) - trained(contrasted, [2])).abs().max() > 1e-6


def test_a_restart_goes_on_with_the_clients_last_models(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, method="moon", options=OPTIONS)
