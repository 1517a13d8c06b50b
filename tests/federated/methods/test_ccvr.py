"""CCVR: sums give the paper's means and covariances, virtual features have them, and a classifier learns from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated import survey
from fedscale.federated.backends import memory
from fedscale.federated.checkpoint import newest_round, restore, save_round
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Problem, ServerWork, method_class
from fedscale.federated.methods.ccvr import gaussians, spread
from tests.federated.engine_support import trained
from tests.federated.methods.support import engine_of, global_model

OPTIONS = {"features": 30, "epochs": 2, "batch_size": 8, "lr": 0.05}
WIDTH = 5
Samples = list[list[np.ndarray]]  # of each client and class, [n, D]


def made(classes: int = 3, width: int = WIDTH, **options: Any) -> Any:
    return method_class("ccvr")(FederateConfig(method="ccvr", options=options), Problem(classes, width, 4))


def samples() -> Samples:
    """Of four clients and three classes; some have none, or one, of a class; the last class has fewer than D in all."""
    draws = np.random.default_rng(0)
    sizes = [[9, 1, 1], [0, 7, 2], [12, 1, 0], [1, 0, 0]]
    return [[draws.normal(3 * label, 1 + label, (n, WIDTH)) for label, n in enumerate(row)] for row in sizes]


def summed(clients: Samples, full: bool = True) -> dict[str, Tensor]:
    """What the clients tell, added up."""
    classes = [np.concatenate([client[label] for client in clients]) for label in range(len(clients[0]))]
    products = [x.T @ x if full else (x**2).sum(0) for x in classes]
    told = {"counts": [float(len(x)) for x in classes], "sums": [x.sum(0) for x in classes], "products": products}
    return {name: torch.from_numpy(np.array(value)) for name, value in told.items()}


def equations_3_and_4(clients: Samples, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a class from the clients' own ones."""
    own = [client[label] for client in clients if len(client[label])]
    sizes, means = [len(x) for x in own], [x.mean(0) for x in own]
    covariances = [np.cov(x.T, ddof=1) if len(x) > 1 else np.zeros((WIDTH, WIDTH)) for x in own]
    total = sum(sizes)
    mean = sum(n / total * m for n, m in zip(sizes, means, strict=True))
    covariance = sum((n - 1) / (total - 1) * s for n, s in zip(sizes, covariances, strict=True))
    covariance = covariance + sum(n / (total - 1) * np.outer(m, m) for n, m in zip(sizes, means, strict=True))
    return mean, covariance - total / (total - 1) * np.outer(mean, mean)


def test_sums_over_all_clients_give_the_papers_means_and_covariances() -> None:
    clients = samples()
    found = dict(gaussians(**summed(clients)))
    assert list(found) == [0, 1, 2]
    for label, (mean, covariance) in found.items():
        wanted = equations_3_and_4(clients, label)
        np.testing.assert_allclose(mean.numpy(), wanted[0], rtol=1e-12)
        np.testing.assert_allclose(covariance.numpy(), wanted[1], rtol=1e-9, atol=1e-10)
    for label, (_, variances) in gaussians(**summed(clients, full=False)):
        np.testing.assert_allclose(variances.numpy(), np.diagonal(found[label][1].numpy()), rtol=1e-9, atol=1e-10)


def test_a_class_of_one_sample_has_the_mean_covariance_and_one_of_none_is_left_out() -> None:
    clients = [[*client[:2], np.empty((0, WIDTH)), np.empty((0, WIDTH))] for client in samples()]
    clients[0][2] = np.full((1, WIDTH), 7.0)
    found = dict(gaussians(**summed(clients)))
    assert list(found) == [0, 1, 2]
    assert torch.equal(found[2][0], torch.full((WIDTH,), 7.0, dtype=torch.float64))
    sizes = [sum(len(client[label]) for client in clients) - 1 for label in (0, 1)]
    wanted = sum(n * found[label][1] for label, n in enumerate(sizes)) / sum(sizes)
    torch.testing.assert_close(found[2][1], wanted)


def test_what_is_drawn_has_the_covariance_also_where_that_is_singular() -> None:
    draws = torch.Generator().manual_seed(0)
    factor = torch.randn(6, 2, generator=draws, dtype=torch.float64)
    covariance = factor @ factor.T  # of rank 2
    noise = torch.randn(200_000, 6, generator=draws, dtype=torch.float64)
    drawn = spread(covariance, noise)
    assert (torch.cov(drawn.T) - covariance).abs().max() < 0.03 * covariance.abs().max()
    normal = torch.linalg.svd(factor).U[:, 2:]
    assert (drawn @ normal).abs().max() < 1e-6
    turned = spread(covariance + 1e-15 * torch.randn(6, 6, generator=draws, dtype=torch.float64), noise[:100])
    assert (turned - drawn[:100]).abs().max() < 1e-6, "a last digit turns nothing"
    assert torch.equal(spread(torch.tensor([4.0, 0.0]), torch.tensor([[1.0, 3.0]])), torch.tensor([[2.0, 0.0]]))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_classifier_that_knows_nothing_learns_the_classes_from_their_gaussians(covariance: str) -> None:
    method = made(features=200, epochs=20, lr=0.02, covariance=covariance)
    model = nn.Module()
    model.classifier = nn.Linear(WIDTH, 3, dtype=torch.float64)
    nn.init.zeros_(model.classifier.weight)
    means = 3 * torch.eye(3, WIDTH, dtype=torch.float64)
    cloud = torch.randn(3, 50, WIDTH, dtype=torch.float64) + means[:, None]
    products = cloud.transpose(1, 2) @ cloud if covariance == "full" else cloud.square().sum(1)
    reports = {"counts": torch.full((3,), 50.0).double(), "sums": cloud.sum(1), "products": products}
    shared = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in method.shared.items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method.surveyed(ServerWork(model, shared, reports, {}, 4, 3, 5, None, None, {}))
    logits = cloud @ shared["head"][:, :-1].T + shared["head"][:, -1]
    assert (logits.argmax(2) == torch.arange(3)[:, None]).double().mean() > 0.9
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_training_goes_on_from_the_global_classifier_by_plain_sgd() -> None:
    method, draws = made(features=8, epochs=1, batch_size=24, lr=0.1, momentum=0.0), torch.Generator().manual_seed(1)
    model = nn.Module()
    model.classifier = nn.Linear(WIDTH, 3, dtype=torch.float64)
    # Without spread the one step of one batch has a gradient that is known: of the means alone.
    means = torch.randn(3, WIDTH, generator=draws, dtype=torch.float64)
    reports = {"counts": torch.full((3,), 4.0).double(), "sums": 4 * means}
    reports["products"] = 4 * means[:, :, None] * means[:, None]
    shared = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in method.shared.items()}
    method.surveyed(ServerWork(model, shared, reports, {}, 4, 3, 5, None, None, {}))
    loss = F.cross_entropy(model.classifier(means), torch.arange(3))
    weight, bias = torch.autograd.grad(loss, (model.classifier.weight, model.classifier.bias))
    torch.testing.assert_close(
        shared["head"][:, :-1], (model.classifier.weight - 0.1 * weight).detach(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(shared["head"][:, -1], (model.classifier.bias - 0.1 * bias).detach(), atol=1e-6, rtol=0)


def told(engine: Engine) -> dict[str, np.ndarray]:
    """What all clients should tell, from a plain pass of the global model."""
    model, rows = global_model(engine).eval(), torch.from_numpy(np.concatenate(engine.clients))
    with torch.no_grad():
        features = model.features(engine.data.normalised(engine.data._host[rows]).double()).numpy()
    classes = [features[engine.data._labels[rows].numpy() == label] for label in range(3)]
    return {
        "counts": np.array([len(x) for x in classes]),
        "sums": np.stack([x.sum(0) for x in classes]),
        "products": np.stack([x.T @ x for x in classes]),
    }


def all_told(engine: Engine) -> dict[str, Tensor]:
    return survey.survey_sums(engine, range(len(engine.clients)))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_survey_adds_up_all_clients_however_they_are_grouped(
    width: int, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "TOGETHER", width)
    engine = engine_of("loop", tmp_path, method="ccvr", options=OPTIONS, aggregate={"exact": exact})
    for name, wanted in told(engine).items():
        np.testing.assert_allclose(all_told(engine)[name].numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_two_ranks_that_ask_half_the_groups_each_add_up_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "TOGETHER", 3)
    engine = engine_of("loop", tmp_path, method="ccvr", options=OPTIONS)
    whole, parts = all_told(engine), []
    for rank in (0, 1):

        class Half(type(engine.mesh)):  # type: ignore[misc]
            clients, client_index = 2, rank

        half = engine.mesh
        engine.mesh = Half()
        parts.append(all_told(engine))
        engine.mesh = half
    for name, total in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], total)
        assert not torch.equal(parts[0][name], total)


def test_the_new_classifier_is_evaluated_after_the_survey_and_kept_by_a_checkpoint(tmp_path: Path) -> None:
    engine = engine_of("batched 3", tmp_path / "ccvr", method="ccvr", options=OPTIONS)
    vector = trained(engine)
    assert torch.equal(vector, trained(engine_of("batched 3", tmp_path / "fedavg", method="fedavg")))
    assert torch.equal(engine.judged(), vector), "FedAvg's until then"
    engine.survey("end", 3)
    assert torch.equal(engine.server.vector, vector), "clients would go on from FedAvg's"
    judged, before = engine.layout.views(engine.judged()), engine.layout.views(vector)
    changed = {name for name, tensor in judged.items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    save_round(tmp_path / "ccvr", 3, engine)
    again = engine_of("batched 3", tmp_path / "again", method="ccvr", options=OPTIONS)
    found = newest_round(tmp_path / "ccvr", again.host.whole_layout.describe())
    assert found is not None
    restore(again, found[1])
    assert torch.equal(again.judged(), engine.judged())


def test_covariances_that_do_not_fit_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8 << 30)
    model = nn.Module()
    model.classifier = nn.Linear(2048, 1000)
    with pytest.raises(
        UserError, match=r"covariance=full: 1000 classes at 2048 .* GiB.* 8\.0 GiB.*covariance=diagonal"
    ):
        made(1000, 2048, features=10).check(model, {})
    made(1000, 2048, features=10, covariance="diagonal").check(model, {})
    made(100, 256).check(model, {})
