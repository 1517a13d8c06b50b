"""CReFF: clients tell the head's gradients of each class, the server's closed form is the paper's by autograd."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.methods import Problem, method_class
from fedscale.federated.methods.features import add_class_gradients, initial_head, train_head_
from fedscale.rng import torch_generator
from tests.federated.engine_support import trained
from tests.federated.methods.support import (
    CLIENTS,
    assert_a_saved_round_goes_on,
    assert_models_equal,
    engine_of,
    engines,
    global_model,
    models_after,
    plainly,
)

OPTIONS = {"features": 6, "match_steps": 5, "head_epochs": 3, "head_batch": 4}


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The plain autograd loop that the benchmark measures."""
    spec = importlib.util.spec_from_file_location("bench_creff", Path(__file__).parents[3] / "bench" / "creff.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_autograd(engine: Any, client: int) -> tuple[Tensor, Tensor]:
    """The gradients [C, C, D + 1] of the shared head over each class of the client, and which classes it has."""
    model, head = global_model(engine).eval(), engine.server.shared["head"]
    layer = nn.Linear(head.shape[1] - 1, 3).double()
    layer.load_state_dict({"weight": head[:, :-1], "bias": head[:, -1]})
    rows = torch.from_numpy(engine.clients[client])
    images, labels = engine.data.normalised(engine.data._host[rows]).double(), engine.data._labels[rows]
    gradients = torch.zeros(3, 3, head.shape[1], dtype=torch.float64)
    for label in labels.unique().tolist():
        loss = F.cross_entropy(layer(model.features(images[labels == label])), labels[labels == label])
        weight, bias = torch.autograd.grad(loss, (layer.weight, layer.bias))
        gradients[label] = torch.cat([weight, bias[:, None]], dim=1)
    return gradients, torch.bincount(labels, minlength=3) > 0


def test_every_backend_tells_the_gradients_of_the_shared_head_and_trains_as_fedavg(tmp_path: Path) -> None:
    wanted: dict[int, tuple[Tensor, Tensor]] = {}
    for engine in engines(tmp_path, method="creff", options=OPTIONS):
        wanted = wanted or {client: by_autograd(engine, client) for client in CLIENTS}
        for group in engine.backend.train(engine.start(), engine.plan(1, CLIENTS)):
            for lane, client in enumerate(group.plan.clients):
                gradients, present = wanted[client]
                assert (group.reports["gradients"][lane] - gradients).abs().max() < 1e-9
                assert torch.equal(group.reports["present"][lane].bool(), present)
        assert_models_equal(models_after(engine)[CLIENTS[0]], plainly(engine, CLIENTS[0], cross_entropy))
    assert any(not present.all() for _, present in wanted.values()), "a client without one of the classes"


def cross_entropy(step: Any) -> Tensor:
    return F.cross_entropy(step.logits, step.labels)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "options"),
    [
        (torch.float64, 1e-9, {"features": 7, "match_steps": 30, "head_epochs": 8, "head_batch": 4}),
        (torch.float32, 1e-4, {"features": 20, "match_steps": 100, "head_epochs": 40}),
    ],
)
def test_the_server_step_is_the_plain_autograd_loop(
    plain: ModuleType, dtype: torch.dtype, tolerance: float, options: dict[str, int]
) -> None:
    method, work = plain.example(5, 12, dtype, "cpu", **options)
    before = {name: tensor.clone() for name, tensor in work.shared.items()}
    features, head = plain.plain_work(work, method.options)
    assert torch.equal(work.shared["features"], before["features"]), "the plain loop left them as they were"
    method.server_work(work)
    assert plain.difference(work.shared["features"], features) < tolerance
    assert plain.difference(work.shared["head"], head) < tolerance
    moved = (work.shared["features"] - before["features"]).abs().amax((1, 2))
    assert (moved[:-1] > 1e-3).all() and moved[-1] == 0, "a class that no client has stays where it is"


def test_features_that_are_matched_for_long_have_the_clients_gradients(plain: ModuleType) -> None:
    method, work = plain.example(3, 8, torch.float64, "cpu", features=10, match_steps=2000, match_lr=0.5)
    head = work.shared["head"].clone()

    def likeness() -> Tensor:
        features = work.shared["features"]
        errors = (features @ head[:, :-1].T + head[:, -1]).softmax(2) - torch.eye(3)[:, None]
        found = torch.einsum("cnk,cnd->ckd", errors, features)
        return F.cosine_similarity(found, work.reports["gradients"][..., :-1], dim=2)[:-1]

    assert likeness().min() < 0.8
    method.server_work(work)
    assert likeness().min() > 0.99


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_head_learns_classes_that_lie_apart_as_torchs_own_sgd_teaches_it(momentum: float) -> None:
    labels = torch.arange(3).repeat_interleave(10)
    features = 4 * torch.eye(3, 5, dtype=torch.float64)[labels] + 0.1 * torch.randn(30, 5, dtype=torch.float64)
    head = initial_head(3, 5, torch_generator(1, "head"))
    layer = nn.Linear(5, 3).double()
    layer.load_state_dict({"weight": head[:, :-1], "bias": head[:, -1]})
    optimizer = torch.optim.SGD(layer.parameters(), 0.05, momentum)
    draws = torch_generator(2, "order")
    train_head_(head, features, labels, 10, 8, 0.05, torch_generator(2, "order"), momentum)
    for _ in range(10):
        for rows in torch.randperm(30, generator=draws).split(8):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
    assert (head[:, :-1] - layer.weight).abs().max() < 1e-12 and (head[:, -1] - layer.bias).abs().max() < 1e-12
    assert torch.equal((features @ head[:, :-1].T + head[:, -1]).argmax(1), labels)


def test_the_mean_is_over_the_clients_that_hold_a_class_alone(plain: ModuleType) -> None:
    results = []
    for share in (0.25, 1.0):
        method, work = plain.example(4, 6, torch.float64, "cpu", **OPTIONS)
        scale = share / work.reports["present"].clamp(min=0.1)
        for name in ("gradients", "present"):
            work.reports[name] *= scale.view(-1, *[1] * (work.reports[name].dim() - 1))
        method.server_work(work)
        results.append(work.shared["features"])
    assert (results[0] - results[1]).abs().max() < 1e-12


def test_gradients_add_up_over_batches_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fedscale.federated import clients

    told = []
    for size in (500, 4):
        monkeypatch.setattr(clients, "BATCH", size)
        engine = engine_of("batched 8", tmp_path / str(size), method="creff", options=OPTIONS)
        plan, start = engine.plan(1, CLIENTS), engine.start()
        staged, head = engine.data.stage(plan), engine.server.shared["head"]
        seen = clients.Surveyed(plan, engine.data, staged, start.model, 3, engine.server.shared, {})
        gradients = torch.zeros(8, 3, 3, head.shape[1], dtype=torch.float64)
        add_class_gradients(seen, head, gradients)
        told.append(gradients)
    assert (told[0] - told[1]).abs().max() < 1e-12


def test_the_first_head_and_features_are_as_torch_would_draw_them_and_the_seeds_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, head = nn.Linear(400, 50), initial_head(50, 400, torch_generator(1, "head"))
    for ours, theirs in ((head[:, :-1], layer.weight), (head[:, -1], layer.bias)):
        assert abs(ours.std() / theirs.std() - 1) < 0.3 and ours.abs().max() <= 1 / 20
    engine = engine_of("loop", tmp_path, method="creff", options={"features": 400})
    features = engine.server.shared["features"]
    assert abs(features.mean()) < 0.05 and abs(features.std() - 1) < 0.05
    again = engine_of("batched 3", tmp_path, method="creff", options={"features": 400}).server.shared
    assert all(torch.equal(tensor, again[name]) for name, tensor in engine.server.shared.items())


def test_what_is_evaluated_has_the_new_head_and_what_is_sent_out_is_fedavgs(tmp_path: Path) -> None:
    engine = engine_of("batched 3", tmp_path / "creff", method="creff", options=OPTIONS)
    before = engine.layout.views(engine.judged())
    assert torch.equal(before["classifier.weight"], dict(engine.host.model.named_parameters())["classifier.weight"])
    vector = trained(engine)
    assert torch.equal(vector, trained(engine_of("batched 3", tmp_path / "fedavg", method="fedavg")))
    sent, judged = engine.layout.views(vector), engine.layout.views(engine.judged())
    head = engine.server.shared["head"]
    for name, tensor in judged.items():
        wanted = {"classifier.weight": head[:, :-1], "classifier.bias": head[:, -1]}.get(name, sent[name])
        assert torch.equal(tensor, wanted), name


def test_a_saved_round_goes_on_with_its_features_and_head(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, method="creff", options=OPTIONS)


def test_gradients_that_no_client_could_send_are_refused_in_one_line() -> None:
    config = FederateConfig(method="creff")
    with pytest.raises(UserError, match=r"1000 classes at 2048 features are 7\.6 GiB a client.*model\.projection"):
        method_class("creff")(config, Problem(1000, 2048, 20))


def test_a_classifier_without_a_bias_is_refused_in_one_line() -> None:
    method = method_class("creff")(FederateConfig(method="creff"), Problem(3, 8, 20))
    model = nn.Module()
    model.classifier = nn.Linear(8, 3, bias=False)
    with pytest.raises(UserError, match="creff: needs a classifier with a bias"):
        method.check(model, {})
