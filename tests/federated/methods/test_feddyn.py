"""FedDyn is Acar et al.'s Algorithm 1 at the client and at the server."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.engine import Engine
from fedscale.federated.flat import FlatLayout
from fedscale.federated.lanes.state import Blocks, LaneState
from fedscale.federated.methods import Server, method_class
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
from tests.federated.test_methods import clients_of

ALPHA = 0.3


def test_three_rounds_of_every_backend_are_the_papers_algorithm(tmp_path: Path) -> None:
    gradients: dict[int, dict[str, Tensor]] = {}  # g_k
    h: dict[str, Tensor] = {}

    def algorithm(engine: Engine, number: int) -> Mapping[str, Tensor]:
        model, cohort, models = global_model(engine), engine.cohort(number), {}
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        nothing = {name: torch.zeros_like(p) for name, p in start.items()}
        for client in cohort:
            own = gradients.get(client, nothing)

            def objective(step: Step, own: dict[str, Tensor] = own) -> Tensor:
                loss = nn.functional.cross_entropy(step.logits, step.labels)
                for name, p in step.model.named_parameters():
                    loss = loss - (own[name] * p).sum() + ALPHA / 2 * (p - start[name]).square().sum()
                return loss

            models[client] = state_of(plainly(engine, client, objective, number))
            gradients[client] = {n: own[n] - ALPHA * (models[client][n] - start[n]) for n in start}
        mean = {name: sum(m[name] for m in models.values()) / len(models) for name in state_of(model)}
        for name, p in start.items():
            moved = sum(m[name] - p for m in models.values())
            h[name] = h.get(name, nothing[name]) - ALPHA / len(SIZES) * moved
            mean[name] = mean[name] - h[name] / ALPHA
        return mean

    assert_rounds_are(tmp_path, algorithm, method="feddyn", options={"alpha": ALPHA}, momentum=0.5, lr=0.02)


def test_exact_clients_of_different_curvature_meet_at_the_sums_minimum() -> None:
    # L_k = a_k/2·(θ − c_k)²: the sum's minimum is Σ a·c / Σ a = 0.25; the mean of the clients' own minima would be 2.
    curvature, centre = (torch.tensor(v, dtype=torch.float64).view(2, 1, 1) for v in ([7.0, 1.0], [0.0, 2.0]))
    method = method_class("feddyn")(FederateConfig(method="feddyn", options={"alpha": 1.0}))
    state = LaneState(FlatLayout.of(nn.Linear(1, 1, bias=False)), 2, torch.zeros(1, dtype=torch.float64), method.roles)
    view, vector = state.view(), torch.full((1,), 5.0, dtype=torch.float64)
    server = {"h": torch.zeros_like(vector)}
    clients = clients_of(view, {}, torch.ones(2))
    with torch.no_grad():
        for number in range(1, 61):
            view.parameters[0].fill_(float(vector))
            method.init(clients)
            for _ in range(200):
                gradients = Blocks([curvature * (view.parameters[0] - centre)])
                method.adjust(view, gradients)
                view.parameters.sub_(gradients, alpha=0.1)
            method.final(clients)
            mean = view.parameters[0].mean(0).view(1)
            vector = method.server_step(Server(vector, server, 1.0, number), mean, {})
    assert float(vector) == pytest.approx(0.25, abs=1e-9)


def test_a_restart_goes_on_with_the_clients_and_the_servers_vectors(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, method="feddyn", options={"alpha": ALPHA})
    plain, dynamic = (trained(engine_of("batched 2", tmp_path / m, method=m)) for m in ("fedavg", "feddyn"))
    assert (plain - dynamic).abs().max() > 1e-3


def test_alpha_of_zero_is_another_method() -> None:
    with pytest.raises(UserError, match=r"federate\.options\.alpha=0.0: expected .*fedavg"):
        FederateConfig(method="feddyn", options={"alpha": 0.0})
