"""FedNova averages the clients' changes divided by what a gradient weighs in each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Server, method_class
from fedscale.federated.plan import local_steps
from tests.federated.engine_support import SIZES
from tests.federated.methods.support import (
    Step,
    assert_a_saved_round_goes_on,
    assert_rounds_are,
    global_model,
    plainly,
    state_of,
)

EPOCHS = 2


def made(**settings: Any) -> Any:
    return method_class("fednova")(FederateConfig(method="fednova", **settings))


def weighs(steps: int, momentum: float) -> float:
    """‖a‖₁ as the official code counts it, step by step."""
    counter = total = 0.0
    for _ in range(steps):
        counter = momentum * counter + 1
        total += counter
    return total


def cross_entropy(step: Step) -> Tensor:
    return nn.functional.cross_entropy(step.logits, step.labels)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_rounds_of_every_backend_are_the_papers_update(momentum: float, tmp_path: Path) -> None:
    def update(engine: Engine, number: int) -> Mapping[str, Tensor]:
        model, cohort = global_model(engine), engine.cohort(number)
        models = {client: state_of(plainly(engine, client, cross_entropy, number)) for client in cohort}
        p = {client: SIZES[client] / sum(SIZES[c] for c in cohort) for client in cohort}
        a = {client: weighs(local_steps(SIZES[client], 4, EPOCHS), momentum) for client in cohort}
        assert len(set(a.values())) > 2, "clients of different numbers of steps"
        effective, out = sum(p[c] * a[c] for c in cohort), {}
        trained = dict(model.named_parameters())
        for name, before in state_of(model).items():
            if name in trained:
                out[name] = before + effective * sum(p[c] * (models[c][name] - before) / a[c] for c in cohort)
            else:
                out[name] = sum(p[c] / a[c] * models[c][name] for c in cohort) / sum(p[c] / a[c] for c in cohort)
        return out

    assert_rounds_are(tmp_path, update, method="fednova", momentum=momentum, local_epochs=EPOCHS, lr=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_of_constant_gradients_each_counts_by_samples_whatever_its_clients_steps(momentum: float) -> None:
    # FedAvg moves along Σ p·a·g, towards those who take more steps; here along τ_eff·Σ p·g.
    method, sizes, lr = made(momentum=momentum, batch_size=10, local_epochs=3, lr=0.1), [10, 30, 95], 0.1
    gradients = torch.eye(3, dtype=torch.float64)
    steps = [local_steps(size, 10, 3) for size in sizes]
    assert steps == [3, 9, 30]
    models = []
    for count, gradient in zip(steps, gradients, strict=True):
        x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr, momentum)
        for _ in range(count):
            x.grad = gradient.clone()
            optimizer.step()
        models.append(x.detach())
    weights = torch.tensor([method.weight(size) for size in sizes], dtype=torch.float64)
    mean = (weights[:, None] * torch.stack(models)).sum(0) / weights.sum()
    server = Server(torch.ones(3, dtype=torch.float64), {}, 1.0, 1, sizes, steps)
    p = np.array(sizes) / sum(sizes)
    effective = sum(p * [weighs(count, momentum) for count in steps])
    np.testing.assert_allclose(method.server_step(server, mean, {}), 1 - lr * effective * p, rtol=1e-12)


def test_with_equal_steps_it_is_fedavg() -> None:
    method, sizes = made(batch_size=32, local_epochs=10), [31, 8, 20]
    weights = np.array([method.weight(size) for size in sizes])
    np.testing.assert_allclose(weights / weights.sum(), np.array(sizes) / sum(sizes), rtol=1e-14)
    vector, mean = torch.zeros(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    found = method.server_step(Server(vector, {}, 1.0, 1, sizes, [10, 10, 10]), mean, {})
    torch.testing.assert_close(found, mean)


def test_a_restart_goes_on(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, method="fednova")
