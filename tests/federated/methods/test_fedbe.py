"""FedBE: the clients' Gaussian, the ensemble it makes with them, and the student that is averaged on its way."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Problem, Server, ServerWork, method_class
from fedscale.federated.pool import Pool
from fedscale.models import ResNet8
from fedscale.rng import torch_generator
from tests.federated.engine_support import trained
from tests.federated.methods.support import (
    CLIENTS,
    assert_a_saved_round_goes_on,
    engine_of,
    engines,
    global_model,
    models_after,
)

OPTIONS = {"pool_images": 20, "samples": 2, "epochs": 3, "batch_size": 4, "lr": 0.05, "swa_every": 2}


def pool() -> Pool:
    """Fewer images than are asked for."""
    images = torch.randn(14, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Pool(images, torch.full((14,), -1))


def made(**options: Any) -> Any:
    return method_class("fedbe")(FederateConfig(method="fedbe", options=options), Problem(3, 16, 8))


def example() -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """A model with statistics of its own, the clients' mean probabilities, and variances."""
    torch.manual_seed(0)
    model = ResNet8(3, 4).double()
    with torch.no_grad():
        model.train()(pool().images)
    variances = {name: torch.rand_like(p) * 0.01 for name, p in model.named_parameters()}
    return model, torch.randn(14, 3, dtype=torch.float64).softmax(1), variances


def work_of(model: nn.Module, probabilities: Tensor, variances: dict[str, Tensor], clients: int = 4) -> ServerWork:
    padded = F.pad(probabilities, (0, 0, 0, 6))
    vectors = {"spread": {name: v.detach() for name, v in variances.items()}}
    return ServerWork(model, {}, {"probabilities": padded}, vectors, clients, 1, 5, pool().images, None, {})


def gaussian(engine: Engine, cohort: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weighted mean and variance of the cohort's models after round 1, as the paper has them."""
    models = models_after(engine)
    sizes = {client: len(engine.clients[client]) for client in cohort}
    total, mean, variance = sum(sizes.values()), {}, {}
    for entry in engine.layout.parameters:
        name = entry.name
        mean[name] = sum(n / total * models[c][name] for c, n in sizes.items())
        variance[name] = sum(n / total * (models[c][name] - mean[name]) ** 2 for c, n in sizes.items())
    return mean, variance


def test_the_server_knows_the_clients_mean_and_variance_weighted_by_their_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in engines(tmp_path, pool(), method="fedbe", options=OPTIONS):
        mean, variance = gaussian(engine, engine.cohort(1))
        works: list[ServerWork] = []
        monkeypatch.setattr(engine.method, "server_work", works.append)
        trained(engine, [1])
        (work,) = works
        for name, tensor in mean.items():
            torch.testing.assert_close(engine.layout.views(engine.server.vector)[name], tensor, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(work.vectors["spread"][name], variance[name], rtol=1e-6, atol=1e-14)
        assert work.num_clients == 6


def test_a_server_step_on_slices_is_the_step_on_the_whole() -> None:
    method = made()
    draws = torch.Generator().manual_seed(0)
    vector, mean, second = (torch.randn(9, generator=draws, dtype=torch.float64) for _ in range(3))

    def after(part: slice) -> Tensor:
        server = Server(vector[part], {"spread": torch.zeros_like(vector[part])}, 0.5, 1, [10, 30], [1, 3])
        assert torch.equal(method.server_step(server, mean[part], {"spread": 9 * second[part].square()}), mean[part])
        return server.state["spread"]

    assert torch.equal(torch.cat([after(slice(0, 4)), after(slice(4, 9))]), after(slice(0, 9)))
    wanted = (9 * second.square() * 32 / 20 - (mean - vector) ** 2).clamp(min=0)  # 32 is the batch size
    torch.testing.assert_close(after(slice(0, 9)), wanted)
    assert (after(slice(0, 9)) == 0).any() and (after(slice(0, 9)) > 0).any()


def test_every_backend_reports_each_clients_probabilities_in_evaluation_mode(tmp_path: Path) -> None:
    for engine in engines(tmp_path, pool(), method="fedbe", options=OPTIONS):
        models = models_after(engine)
        for group in engine.backend.train(engine.start(), engine.plan(1, CLIENTS)):
            for lane, client in enumerate(group.plan.clients):
                model = global_model(engine).eval()
                model.load_state_dict(models[client], strict=False)
                with torch.no_grad():
                    wanted = model(pool().images).softmax(1)
                assert (group.reports["probabilities"][lane, :14] - wanted).abs().max() < 1e-9


def members(model: nn.Module, variances: dict[str, Tensor], samples: int, noise: float) -> list[nn.Module]:
    """The averaged model and the samples, with its statistics, in evaluation mode."""
    draws, found = torch_generator(5, "samples"), [copy.deepcopy(model).eval()]
    for _ in range(samples):
        sample = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, parameter in sample.named_parameters():
                deviation = variances[name] ** 0.5
                parameter += noise * deviation * torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
        found.append(sample)
    return found


def targets_of(model: nn.Module, probabilities: Tensor, variances: dict[str, Tensor]) -> Tensor:
    """Of four clients, the mean, and two samples, squared and normalised (temperature 0.5)."""
    with torch.no_grad():
        own = [torch.softmax(member(pool().images), 1) for member in members(model, variances, 2, 0.1)]
    p = (4 * probabilities + sum(own)) / 7
    return p**2 / (p**2).sum(1, keepdim=True)


def test_the_ensemble_is_the_sharpened_mean_of_clients_mean_and_samples() -> None:
    model, probabilities, variances = example()
    wanted = targets_of(model, probabilities, variances)
    found = made(**OPTIONS).ensemble(work_of(model, probabilities, variances))
    assert (found - wanted).abs().max() < 1e-12
    alone = made(**{**OPTIONS, "samples": 0, "temperature": 1.0})
    with torch.no_grad():
        both = (4 * probabilities + torch.softmax(model.eval()(pool().images), 1)) / 5
    assert (alone.ensemble(work_of(model, probabilities, variances)) - both).abs().max() < 1e-12


def test_the_student_is_the_mean_of_its_parameters_on_the_way_with_statistics_anew() -> None:
    model, probabilities, variances = example()
    targets, student, images = targets_of(model, probabilities, variances), copy.deepcopy(model).train(), pool().images
    draws, order = torch_generator(5, "distillation"), torch.empty(0, dtype=torch.long)
    parameters, kept = list(student.parameters()), list[list[Tensor]]()
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for number in range(1, 10):  # 3 epochs of 14 // 4 batches
        if len(order) < 4:
            order = torch.randperm(14, generator=draws)
        rows, order = order[:4], order[4:]
        q = torch.softmax(student(images[rows]), dim=1)
        loss = (targets[rows] * (targets[rows].log() - q.log())).mean()
        with torch.no_grad():
            for w, g, v in zip(parameters, torch.autograd.grad(loss, parameters), velocity, strict=True):
                v.mul_(0.9).add_(g + 1e-5 * w)
                w -= 0.05 * v
        if number in (4, 6, 8, 9):  # after 0.3 · 9, every second step, and the last
            kept.append([w.detach().clone() for w in parameters])
    with torch.no_grad():
        for w, *snapshots in zip(parameters, *kept, strict=True):
            w.copy_(torch.stack(snapshots).mean(0))
        norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        for part in (images[:4], images[4:8], images[8:11], images[11:]):
            student(part)
    made(**OPTIONS).server_work(work_of(model, probabilities, variances))
    for (name, ours), theirs in zip(model.state_dict().items(), student.state_dict().values(), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-9, atol=1e-11, err_msg=name)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(norm.momentum == 0.1 for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))


def test_one_step_is_enough_for_an_average() -> None:
    model, probabilities, variances = example()
    before = copy.deepcopy(model.state_dict())
    options = {**OPTIONS, "epochs": 1, "batch_size": 64, "swa_start": 0.9, "swa_every": 25}
    made(**options).server_work(work_of(model, probabilities, variances))
    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all()
        assert not name.endswith("weight") or not torch.equal(tensor, before[name]), name


def test_the_model_that_goes_out_is_the_student_whatever_the_lanes(tmp_path: Path) -> None:
    vectors = []
    for way in ("loop", "batched 3"):
        engine = engine_of(way, tmp_path, pool(), method="fedbe", options=OPTIONS)
        vectors.append(trained(engine, [1, 2]))
    assert (vectors[0] - vectors[1]).abs().max() < 1e-7
    average = trained(engine_of("loop", tmp_path / "average", method="fedavg"), [1, 2])
    assert not torch.equal(vectors[0], average)


def test_a_saved_round_goes_on(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, pool(), method="fedbe", options=OPTIONS)
