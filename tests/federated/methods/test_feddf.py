"""FedDF distils the clients' mean logits into their mean model, on images without labels."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.federated.cost import ImageFlops, round_cost
from fedscale.federated.flat import FlatLayout
from fedscale.federated.methods import Problem, ServerWork, method_class
from fedscale.federated.methods.distil import batches
from fedscale.federated.pool import Pool
from fedscale.models import ResNet8
from fedscale.rng import torch_generator
from tests.federated.engine_support import trained
from tests.federated.methods.support import CLIENTS, assert_a_saved_round_goes_on, engine_of, engines, global_model

OPTIONS = {"pool_images": 20, "steps": 7, "batch_size": 4, "lr": 0.01, "temperature": 2.0}


def pool() -> Pool:
    """Fewer images than are asked for."""
    images = torch.randn(14, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Pool(images, torch.full((14,), -1))


def made(**options: Any) -> Any:
    return method_class("feddf")(FederateConfig(method="feddf", options=options), Problem(3, 16, 8))


def work_of(model: nn.Module, logits: Tensor, images: Tensor) -> ServerWork:
    return ServerWork(model, {}, {"logits": logits}, {}, 8, 1, 5, images, None, {})


def by_hand(model: nn.Module, logits: Tensor, images: Tensor) -> nn.Module:
    """Adam by its formula, KL by its sum, the gradient's norm and the cosine written out."""
    student, t = copy.deepcopy(model).train(), 2.0
    p = torch.exp(logits / t) / torch.exp(logits / t).sum(1, keepdim=True)
    parameters = list(student.parameters())
    first, second = ([torch.zeros_like(q) for q in parameters] for _ in range(2))
    draws, order = torch_generator(5, "distillation"), torch.empty(0, dtype=torch.long)
    for number in range(1, 8):
        if len(order) < 4:  # what is left of an epoch is no batch
            order = torch.randperm(14, generator=draws)
        rows, order = order[:4], order[4:]
        q = torch.softmax(student(images[rows]) / t, dim=1)
        loss = (p[rows] * (p[rows].log() - q.log())).sum() / 4
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        scale = min(1.0, 0.3 / (norm + 1e-6))
        rate = 0.01 * (1 + math.cos(math.pi * (number - 1) / 7)) / 2
        with torch.no_grad():
            for w, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * scale * g)
                v.mul_(0.999).add_(0.001 * (scale * g) ** 2)
                w -= rate * (m / (1 - 0.9**number)) / ((v / (1 - 0.999**number)).sqrt() + 1e-8)
    return student


def test_the_student_takes_the_steps_that_are_written_out_by_hand() -> None:
    torch.manual_seed(0)
    model, images = ResNet8(3, 4).double(), pool().images
    logits = 3 * torch.randn(14, 3, dtype=torch.float64)
    wanted = by_hand(model, logits, images)
    padded = F.pad(logits, (0, 0, 0, 6))
    made(**OPTIONS, clip_norm=0.3).server_work(work_of(model, padded, images))
    for (name, ours), theirs in zip(model.state_dict().items(), wanted.state_dict().values(), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-7, atol=1e-9, err_msg=name)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_student_comes_to_say_what_the_ensemble_says() -> None:
    torch.manual_seed(0)
    model, images = ResNet8(3, 4).double(), pool().images
    logits = 8.0 * F.one_hot(torch.arange(14) % 3, 3).double()
    made(pool_images=14, steps=150, batch_size=14, lr=0.01).server_work(work_of(model, logits, images))
    with torch.no_grad():
        assert torch.equal(model.train()(images).argmax(1), logits.argmax(1))


def test_every_epoch_sees_each_image_at_most_once_and_all_batches_are_of_one_size() -> None:
    rows = list(batches(10, 4, 5, torch.Generator().manual_seed(0)))
    assert [len(part) for part in rows] == [4] * 5
    assert len(torch.cat(rows[:2]).unique()) == 8 and len(torch.cat(rows[2:4]).unique()) == 8
    assert [len(part) for part in batches(3, 64, 2, torch.Generator())] == [3, 3]


def test_every_backend_reports_each_clients_logits_in_evaluation_mode(tmp_path: Path) -> None:
    images, wanted = pool().images, dict[int, Tensor]()
    for engine in engines(tmp_path, pool(), method="feddf", options=OPTIONS):
        for group in engine.backend.train(engine.start(), engine.plan(1, CLIENTS)):
            for lane, client in enumerate(group.plan.clients):
                vector = group.state.model.lane(lane, torch.zeros_like(engine.server.vector))
                model = global_model(engine).eval()
                engine_state = engine.layout.views(vector)
                model.load_state_dict(engine_state, strict=False)
                with torch.no_grad():
                    logits = wanted.setdefault(client, model(images))
                assert (group.reports["logits"][lane, :14] - logits).abs().max() < 1e-9
                assert not group.reports["logits"][lane, 14:].any()


def test_the_model_that_goes_out_is_the_student_with_its_statistics_whatever_the_lanes(tmp_path: Path) -> None:
    vectors = []
    for way in ("loop", "batched 3"):
        engine = engine_of(way, tmp_path, pool(), method="feddf", options=OPTIONS)
        vectors.append(trained(engine, [1, 2]))
    assert (vectors[0] - vectors[1]).abs().max() < 1e-7
    average = trained(engine_of("loop", tmp_path / "average", method="fedavg"), [1])
    engine = engine_of("loop", tmp_path / "again", pool(), method="feddf", options=OPTIONS)
    for name, tensor in engine.layout.views(trained(engine, [1])).items():
        assert not torch.equal(tensor, engine.layout.views(average)[name]), name


def test_a_saved_round_goes_on(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, pool(), method="feddf", options=OPTIONS)


def test_what_the_server_works_out_for_itself_costs_no_upload() -> None:
    layout = FlatLayout.of(ResNet8(3, 4))
    costs = []
    for name in ("fedavg", "feddf", "creff"):
        method = method_class(name)(FederateConfig(method=name), Problem(3, 16, 8))
        costs.append(round_cost(layout, method, method.config, [5] * 8, ImageFlops(1, 2)))
    assert costs[0] == costs[1]
    assert costs[2].bytes_up - costs[0].bytes_up == 8 * 4 * (3 * 3 * 17 + 3)
    assert costs[2].bytes_down - costs[0].bytes_down == 8 * 4 * 3 * 17, "the head, and none of the features"
