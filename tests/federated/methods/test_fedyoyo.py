"""FedYoYo: the paper's two terms on two views of each image, and class sizes estimated before each round."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.cost import ImageFlops, round_cost
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Batch, Problem, ServerWork, method_class
from tests.federated.engine_support import trained
from tests.federated.methods.support import (
    CLIENTS,
    WAYS,
    assert_a_saved_round_goes_on,
    assert_models_equal,
    counts_of,
    engine_of,
    global_model,
    models_after,
    state_of,
)

OPTIONS = {"tau": 1.2, "temperature": 2.0, "weight": 3.0, "warmup": 4, "own_share": 0.3}
GIVEN = torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)


def plain_sizes(engine: Engine, client: int, number: int) -> Tensor:
    """Class sizes as one client sends them: 1/(aᵀRa) of each class in each batch of the round's first epoch."""
    model, plan = global_model(engine).eval(), engine.plan(number, [client])
    rows = torch.from_numpy(engine.clients[client])
    features = model.features(engine.data.normalised(engine.data._host[rows]).double()).detach()
    labels = engine.data._labels[rows]
    means = {c: features[labels == c].mean(0) for c in set(labels.tolist())}
    found, order = torch.zeros(3, dtype=torch.float64), {row: i for i, row in enumerate(rows.tolist())}
    epoch = [row for step in range(len(plan.rows)) for row in plan.rows[step, 0, : plan.counts[step, 0]].tolist()]
    epoch = epoch[: len(rows)]
    for first in range(0, len(epoch), 32):
        batch = [order[row] for row in epoch[first : first + 32]]
        for c in range(3):
            mine = [features[i] - means[c] for i in batch if int(labels[i]) == c]
            if len(mine) == 1:
                found[c] += 1
            elif mine:
                total = sum(float(a @ b / (a.norm() * b.norm()).clamp(min=1e-30)) for a in mine for b in mine)
                found[c] += 1 / max(total / len(mine) ** 2, 1e-6)
    return found


def plain_client(engine: Engine, client: int, per_step: bool) -> Any:
    """Local training by torch.optim.SGD, one sample's loss after the other."""
    federate, plan, model = engine.config.federate, engine.plan(1, [client]), global_model(engine).train()
    staged = engine.data.stage(plan)
    optimizer = torch.optim.SGD(model.parameters(), federate.lr)
    counts = counts_of(engine, client)
    own, prior = counts / counts.sum(), GIVEN / GIVEN.sum()
    prior = prior if per_step else 0.7 * prior + 0.3 * own
    for step in range(len(plan.rows)):
        size = int(plan.counts[step, 0])
        rows = staged.rows[step, :1, :size]
        images, labels = engine.data.gathered(
            staged, rows, staged.augment_keys, step, False, torch.float64, strong=True
        )
        prior = 0.7 * prior + 0.3 * own if per_step else prior
        logits = model(images[:, 0]) + torch.log(prior**1.2 + 1e-9)
        loss, distilled = torch.zeros((), dtype=torch.float64), []
        for i, label in enumerate(labels[0].tolist()):
            weak, strong = logits[i], logits[size + i]
            loss = loss - (weak.log_softmax(0)[label] + strong.log_softmax(0)[label]) / (2 * size)
            if int(weak.argmax()) == label:
                p, q = (weak.detach() / 2.0).softmax(0), (strong / 2.0).softmax(0)
                distilled.append((p * (p / q).log()).sum())
        if distilled:
            loss = loss + 3.0 * 0.25 * torch.stack(distilled).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(("mixing", "augment"), [("once", "crop_flip"), ("per_step", "none")])
def test_every_backend_trains_as_the_papers_loss_says(tmp_path: Path, mixing: str, augment: str) -> None:
    wanted: dict[int, dict[str, Tensor]] = {}
    for way in WAYS:
        options = {**OPTIONS, "mixing": mixing}
        engine = engine_of(way, tmp_path, method="fedyoyo", options=options, augment=augment)
        engine.server.shared["sizes"].copy_(GIVEN)
        engine.server.shared["ramp"].fill_(0.25)
        wanted = wanted or {c: state_of(plain_client(engine, c, mixing == "per_step")) for c in CLIENTS}
        found = models_after(engine)
        for client in CLIENTS:
            assert_models_equal(found[client], wanted[client])


def test_a_cohort_tells_its_class_sizes_before_it_trains(tmp_path: Path) -> None:
    engine = engine_of("batched 3", tmp_path, method="fedyoyo", options=OPTIONS)
    first = 1 + sum(plain_sizes(engine, client, 1) for client in engine.cohort(1))
    large = first > 1e4
    assert not large.all()
    first[large] = first[~large].mean()
    engine.round(1)
    torch.testing.assert_close(engine.server.shared["sizes"], first, rtol=1e-9, atol=0)
    assert float(engine.server.shared["ramp"]) == 0.25
    second = 0.9 * first + 0.1 * (1 + sum(plain_sizes(engine, client, 2) for client in engine.cohort(2)))
    second = torch.where((second - first).abs() / first > 100, first, second)
    engine.round(2)
    torch.testing.assert_close(engine.server.shared["sizes"], second, rtol=1e-9, atol=0)
    assert float(engine.server.shared["ramp"]) == 0.5


def made(**options: Any) -> Any:
    return method_class("fedyoyo")(FederateConfig(method="fedyoyo", options=options), Problem(3, 4, 2))


def sizes_after(told: list[float], before: list[float], number: int) -> list[float]:
    shared = {"sizes": torch.tensor(before, dtype=torch.float64), "ramp": torch.zeros(1)}
    reports = {"sizes": torch.tensor(told, dtype=torch.float64)}
    made().surveyed(ServerWork(torch.nn.Identity(), shared, reports, {}, 2, number, 0, None, None, {}))
    return shared["sizes"].tolist()


def test_sizes_that_are_out_of_all_proportion_are_not_believed() -> None:
    assert sizes_after([2e4, 9.0, 19.0], [0.0, 0.0, 0.0], 1) == [15.0, 10.0, 20.0]
    assert sizes_after([2e4, 2e4, 2e4], [0.0, 0.0, 0.0], 1) == [20001.0] * 3
    assert sizes_after([9.0, 1e5, 9.0], [10.0, 10.0, 30.0], 2) == pytest.approx([10.0, 10.0, 28.0])


def test_the_distillation_is_of_samples_that_the_weak_view_has_right() -> None:
    weak = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    strong = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    even = {"prior": torch.full((1, 3), 1 / 3, dtype=torch.float64), "own": torch.full((1, 3), 1 / 3)}
    batch = Batch(weak, torch.tensor([[0, 2]]), even, {"ramp": torch.ones(1)}, views={"strong": strong})
    with_it, without = made(weight=2.0, temperature=1.0).loss(batch), made(weight=0.0).loss(batch)
    p = 1 / (1 + 2 * math.exp(-2))
    kl = p * math.log(3 * p) + (1 - p) * math.log(3 * (1 - p) / 2)
    torch.testing.assert_close((with_it - without).detach(), torch.tensor([[2 * 2.0 * kl, 0.0]], dtype=torch.float64))
    (teacher,) = torch.autograd.grad((with_it - without).sum(), weak)
    assert not teacher.any(), "the teacher is not taught"


def test_three_rounds_are_the_same_in_any_groups_and_go_on_from_a_saved_one(tmp_path: Path) -> None:
    loop, batched = (trained(engine_of(way, tmp_path, method="fedyoyo")) for way in ("loop", "batched 3"))
    assert (loop - batched).abs().max() < 1e-9
    assert_a_saved_round_goes_on(tmp_path / "saved", method="fedyoyo", options={"warmup": 2})


def test_a_round_that_is_stopped_leaves_the_estimate_as_it_was(tmp_path: Path) -> None:
    engine = engine_of("batched 3", tmp_path, method="fedyoyo")
    engine.round(1)
    before = {name: tensor.clone() for name, tensor in engine.server.shared.items()}
    engine.interrupted = lambda: True
    assert engine.round(2) is None
    assert all(torch.equal(engine.server.shared[name], tensor) for name, tensor in before.items())
    engine.interrupted = lambda: False
    again = trained(engine, [2])
    straight = engine_of("batched 3", tmp_path / "straight", method="fedyoyo")
    assert torch.equal(again, trained(straight, [1, 2]))


def test_a_staged_store_gives_the_same_views_as_a_resident_one(tmp_path: Path) -> None:
    from tests.federated.engine_support import make_engine, settings

    config = settings(method="fedyoyo", augment="crop_flip")
    resident = make_engine(config, "small", folder=tmp_path / "a")
    mapped = make_engine(config, "small", folder=tmp_path / "b", resident=False)
    assert torch.equal(trained(resident), trained(mapped))
    mapped.data.close()


def test_a_round_costs_twice_the_passes_and_a_number_a_class(tmp_path: Path) -> None:
    plain, yoyo = engine_of("loop", tmp_path / "a"), engine_of("loop", tmp_path / "b", method="fedyoyo")
    costs = []
    for engine in (plain, yoyo):
        held = [len(rows) for rows in engine.clients]
        costs.append(round_cost(engine.layout, engine.method, engine.config.federate, held, ImageFlops(10, 20)))
    assert costs[1].flops / costs[0].flops == pytest.approx((2 * 30 + 10) / 30)
    assert costs[1].bytes_up - costs[0].bytes_up == pytest.approx(4 * 3 * costs[0].clients)


def test_clients_that_are_cut_over_ranks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fedyoyo needs .*set federate.shard=1"):
        engine_of("loop", tmp_path, method="fedyoyo", shard=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("fedyoyo", {"warmup": 2, "mixing": "per_step"}), ("fedyoyo", {"warmup": 2}), ("fedgrab", {"classes": "all"})],
)
def test_a_compiled_step_keeps_tallies_and_sees_both_views_as_the_plain_one_does(
    tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    found = []
    for way, lanes in (("batched 2", {}), ("graph", {"lanes": 2})):
        engine = engine_of(way, tmp_path, method=method, options=options, **lanes)
        engine.survey("round", 1)
        (group,) = engine.backend.train(engine.start(), engine.plan(1, [3, 4]))  # of as many samples, so of few shapes
        found.append(group.state.model.data.clone())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-9)
