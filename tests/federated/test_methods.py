"""Each method is its paper's formula: at the server on vectors, at a client on its parameters."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedscale.config.methods import BUILT_IN
from fedscale.config.schema import FederateConfig
from fedscale.federated.clients import Clients
from fedscale.federated.flat import FlatLayout
from fedscale.federated.lanes.state import Blocks, LaneState, LaneView
from fedscale.federated.methods import Batch, Method, Server, built_in

SIZE, ROUNDS, CLIENTS, COHORT = 101, 3, 20, 5
ADAPTIVE = {"server_lr": 0.7, "beta1": 0.6, "beta2": 0.95, "tau": 0.05}
OPTIONS: dict[str, dict[str, float]] = {
    "fedprox": {"mu": 0.3},
    "fedavgm": {"server_lr": 0.7, "momentum": 0.8},
    "fedadagrad": ADAPTIVE,
    "fedadam": ADAPTIVE,
    "fedyogi": ADAPTIVE,
    "scaffold": {"server_lr": 0.7},
}


def made(name: str) -> Method:
    """A method with the options of this file's formulas."""
    return built_in()[name](FederateConfig(lr=0.2, method=name, options=OPTIONS.get(name, {})))


Vectors = list[np.ndarray]


# ---- the papers' servers, from the deltas of the rounds


def fedavg(x: np.ndarray, means: Vectors, changes: Vectors) -> Vectors:
    return means


def fedavgm(x: np.ndarray, means: Vectors, changes: Vectors) -> Vectors:
    # Hsu et al. 2019, section 4.3: v ← β·v + Δw, w ← w − v with Δw = w − w̄; with a server learning rate.
    v, out = np.zeros(SIZE), []
    for mean in means:
        v = 0.8 * v + (x - mean)
        x = x - 0.7 * v
        out.append(x)
    return out


def adaptive(second: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., Vectors]:
    # Reddi et al. 2021, algorithm 2: m₀ = 0, v₀ = τ².
    def rounds(x: np.ndarray, means: Vectors, changes: Vectors) -> Vectors:
        m, v, out = np.zeros(SIZE), np.full(SIZE, 0.05**2), []
        for mean in means:
            delta = mean - x
            m = 0.6 * m + (1 - 0.6) * delta
            v = second(v, delta)
            x = x + 0.7 * m / (np.sqrt(v) + 0.05)
            out.append(x)
        return out

    return rounds


def scaffold(x: np.ndarray, means: Vectors, changes: Vectors) -> Vectors:
    # Karimireddy et al. 2020, algorithm 1: x ← x + η_g · mean(Δy).
    out = []
    for mean in means:
        x = x + 0.7 * (mean - x)
        out.append(x)
    return out


SERVERS = {
    "fedavg": fedavg,
    "fedprox": fedavg,
    "fedavgm": fedavgm,
    "fedadagrad": adaptive(lambda v, d: v + d**2),
    "fedadam": adaptive(lambda v, d: 0.95 * v + (1 - 0.95) * d**2),
    "fedyogi": adaptive(lambda v, d: v - (1 - 0.95) * d**2 * np.sign(v - d**2)),
    "scaffold": scaffold,
}


def inputs(method: Method, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The first vector, and of each round the clients' mean and the mean of their uploads."""
    draws = torch.Generator().manual_seed(3)
    vectors = [torch.randn(SIZE, generator=draws, dtype=torch.float64).to(dtype) for _ in range(1 + 2 * ROUNDS)]
    # Deltas of very different sizes: near τ and far above it, so that each term of a denominator counts.
    scale = torch.logspace(-3, 1, SIZE, dtype=torch.float64).to(dtype)
    return vectors[0], [scale * v for v in vectors[1 : 1 + ROUNDS]], [scale * v for v in vectors[1 + ROUNDS :]]


def run(method: Method, cut: slice, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The vectors after each round for a part of the elements, and the server's state at the end."""
    start, means, changes = inputs(method, dtype)
    vector = start[cut].clone()
    state = {name: torch.zeros_like(vector) for name in method.server_state}
    out = []
    for number, (mean, change) in enumerate(zip(means, changes, strict=True), start=1):
        server = Server(vector, state, COHORT / CLIENTS, number)
        before = vector.clone()
        uploads = {name: change[cut].clone() for name in method.uploads}
        vector = method.server_step(server, mean[cut].clone(), uploads)
        assert torch.equal(server.vector, before), "the vector of the round is left as it is"
        out.append(vector)
    return out, state


@pytest.mark.parametrize("name", SERVERS)
def test_three_rounds_of_the_server_are_the_papers_equations(name: str) -> None:
    method = made(name)
    start, means, changes = inputs(method)
    wanted = SERVERS[name](start.numpy(), [m.numpy() for m in means], [c.numpy() for c in changes])
    found, state = run(method, slice(None))
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12, atol=1e-14)
    assert set(state) == set(method.server_state)
    if name == "scaffold":  # c ← c + |S|/N · mean(Δc)
        np.testing.assert_allclose(state["control"].numpy(), sum(c.numpy() for c in changes) * COHORT / CLIENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_step_on_slices_is_the_step_on_the_whole_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    method = made(name)
    whole, state = run(method, slice(None), dtype)
    for cuts in ((0, 32, 64, 96, SIZE), (0, 1, 8, 51, SIZE)):
        parts = [run(method, slice(a, b), dtype) for a, b in itertools.pairwise(cuts)]
        for number, vector in enumerate(whole):
            assert torch.equal(torch.cat([part[0][number] for part in parts]), vector)
        for key, vector in state.items():
            assert torch.equal(torch.cat([part[1][key] for part in parts]), vector)


def test_elements_that_never_move_stay_where_they_are() -> None:
    for name in SERVERS:
        method, vector = made(name), torch.zeros(4)  # paddings
        state = {key: torch.zeros(4) for key in method.server_state}
        for number in range(1, 4):
            uploads = {key: torch.zeros(4) for key in method.uploads}
            vector = method.server_step(Server(vector, state, 0.5, number), torch.zeros(4), uploads)
        assert torch.equal(vector, torch.zeros(4)), name


# ---- clients


def lanes_of(method: Method, steps: int = 3) -> tuple[LaneState, LaneView, list[Tensor]]:
    """Three lanes with random models and roles, of which two are at work; and random gradients."""
    generator = torch.Generator().manual_seed(2)
    layout = FlatLayout.of(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(5, 4)))
    state = LaneState(layout, 3, torch.zeros(1, dtype=torch.float64), method.roles)
    for buffer in (state.model, *state.roles.values()):
        for block in buffer.flat_blocks():
            block.copy_(torch.randn(block.shape, generator=generator, dtype=torch.float64))
    view = state.view(0, 2)
    gradients = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in view.parameters]
    return state, view, gradients


def clients_of(view: LaneView, broadcast: dict[str, Blocks], steps: Tensor) -> Clients:
    """Clients whose samples no method asks for."""
    nothing: Any = None
    return Clients(nothing, nothing, nothing, nothing, 4, {}, {}, view, broadcast, {}, nothing, None, steps)


def test_fedprox_adds_the_gradient_of_half_mu_times_the_squared_distance() -> None:
    method = made("fedprox")
    state, view, gradients = lanes_of(method)
    models = [p.detach().clone().requires_grad_() for p in view.parameters]
    distance = sum(((p - w) ** 2).sum() for p, w in zip(models, view["start"], strict=True))
    wanted = [g + d for g, d in zip(gradients, torch.autograd.grad(0.3 / 2 * distance, models), strict=True)]
    before = state.model.data.clone()
    adjusted = Blocks(gradients)
    with torch.no_grad():
        method.adjust(view, adjusted)
    for ours, theirs in zip(adjusted, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(state.model.data, before)


def test_scaffold_corrects_by_the_controls_and_renews_them_by_option_two() -> None:
    method = made("scaffold")
    state, view, gradients = lanes_of(method)
    other = {role: [block[2].clone() for block in buffer.flat_blocks()] for role, buffer in state.roles.items()}
    control, start = ([b.clone() for b in view[role]] for role in ("control", "start"))
    models = [p.detach().clone() for p in view.parameters]
    c = [torch.randn(1, *p.shape[1:], dtype=torch.float64) for p in models]
    adjusted = Blocks([g.clone() for g in gradients])
    steps = torch.tensor([6.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        clients = clients_of(view, {"control": Blocks(c)}, steps)
        method.init(clients)
        method.adjust(view, adjusted)
        method.final(clients)
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(adjusted[i], gradient - control[i] + c[i], rtol=1e-12, atol=1e-12)
        for lane, count in enumerate(steps.tolist()):
            renewed = control[i][lane] - c[i][0] + (start[i][lane] - models[i][lane]) / (count * 0.2)
            torch.testing.assert_close(view["control"][i][lane], renewed, rtol=1e-12, atol=1e-12)
            change = renewed - control[i][lane]
            torch.testing.assert_close(view["change"][i][lane], change, rtol=1e-12, atol=1e-12)
    for role, blocks in other.items():  # the lane that is not at work
        assert all(torch.equal(b[2], o) for b, o in zip(state.roles[role].flat_blocks(), blocks, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_scaffold_client_whose_gradient_never_changes_has_it_as_its_control(momentum: float) -> None:
    method = built_in()["scaffold"](FederateConfig(lr=0.2, method="scaffold", momentum=momentum))
    _, view, gradients = lanes_of(method)
    steps = torch.tensor([6.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        clients = clients_of(view, {"control": Blocks(torch.zeros(1, *p.shape[1:]).double() for p in gradients)}, steps)
        method.init(clients)
        for i, (model, gradient) in enumerate(zip(view.parameters, gradients, strict=True)):
            model.copy_(view["start"][i])
            for lane, count in enumerate(steps.int().tolist()):
                velocity = torch.zeros_like(gradient[lane])
                for _ in range(count):
                    velocity = momentum * velocity + gradient[lane] + view["drift"][i][lane]
                    model[lane] -= 0.2 * velocity
        method.final(clients)
    for control, gradient in zip(view["control"], gradients, strict=True):
        torch.testing.assert_close(control, gradient, rtol=1e-10, atol=1e-10)


def test_scaffolds_server_control_stays_the_mean_of_all_clients_controls() -> None:
    draws, clients = np.random.default_rng(0), np.zeros((CLIENTS, SIZE))
    method = made("scaffold")
    state = {"control": torch.zeros(SIZE, dtype=torch.float64)}
    for number in range(1, 5):
        cohort = draws.choice(CLIENTS, COHORT, replace=False)
        renewed = draws.normal(size=(COHORT, SIZE))
        change = torch.from_numpy((renewed - clients[cohort]).mean(0))
        clients[cohort] = renewed
        vector = torch.zeros(SIZE, dtype=torch.float64)
        method.server_step(Server(vector, state, COHORT / CLIENTS, number), vector, {"change": change})
        np.testing.assert_allclose(state["control"].numpy(), clients.mean(0), atol=1e-12)


def test_the_loss_of_each_sample_is_its_cross_entropy() -> None:
    logits = torch.randn(3, 5, 4, dtype=torch.float64).transpose(0, 1).contiguous().transpose(0, 1)
    labels = torch.randint(0, 4, (3, 5))
    losses = made("fedavg").loss(Batch(logits, labels))
    wanted = -torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(losses, wanted)


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_a_method_names_fits_together(name: str) -> None:
    kind = built_in()[name]
    assert kind.name == name
    assert kind.citation
    assert kind.extra_cost
    assert set(kind.client_state) <= set(kind.roles)
    assert set(kind.uploads) <= set(kind.roles)
    assert set(kind.broadcast) <= set(kind.server_state)
    assert made(name).adjusts == (name in ("fedprox", "scaffold", "feddyn"))
    if name != "fednova":  # by samples over what a gradient weighs
        assert made(name).weight(17) == (1.0 if name in ("feddyn", "scaffold") else 17.0)
