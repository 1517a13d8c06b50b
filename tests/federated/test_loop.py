"""The loop backend's client is plain SGD, to the last digits of float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedscale.config import overlaid
from fedscale.config.schema import Config, ModelConfig
from fedscale.data.augment import augment, normalise
from fedscale.federated.backends import LoopBackend
from fedscale.federated.methods import FedAvg
from fedscale.models import build_model
from fedscale.rng import torch_generator


class Float64(nn.Module):
    """The model in float64 behind float32 images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.double())


def settings(**federate: object) -> Config:
    return overlaid(Config(), {"federate": {"local_epochs": 2, "batch_size": 4, "lr": 0.05, **federate}})


def make(config: Config) -> tuple[Float64, LoopBackend, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = Float64(build_model(ModelConfig(width=4), 3))
    images = torch.randint(0, 256, (30, 16, 16, 3), dtype=torch.uint8)
    labels = torch.randint(0, 3, (30,))
    return copy.deepcopy(model), LoopBackend(model, images, labels, FedAvg(), config), images, labels


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"weight_decay": 0.01, "momentum": 0.5}, {"augment": "none"}]
)
def test_one_client_is_torch_sgd_on_the_same_batches(options: dict[str, object]) -> None:
    config = settings(**options)
    reference, backend, images, labels = make(config)
    samples = np.array([3, 4, 9, 10, 11, 20, 25, 26, 29])  # nine: the last batch of each epoch holds one
    result = backend.train(backend.flat.vector.clone(), 6, samples, 2)

    settings_ = config.federate
    optimizer = torch.optim.SGD(
        reference.parameters(), settings_.lr, momentum=settings_.momentum, weight_decay=settings_.weight_decay
    )
    losses = []
    for epoch in range(2):
        order = torch.randperm(9, generator=torch_generator(7, "order", 2, 6, epoch))
        draws = torch_generator(7, "augment", 2, 6, epoch)
        for batch in torch.from_numpy(samples)[order].split(4):
            pixels = normalise(augment(images[batch], settings_.augment, draws), config.data.mean, config.data.std)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(reference(pixels), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert result.steps == len(losses) == 6
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)
    for name, tensor in reference.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(backend.flat.model.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_client_does_not_depend_on_the_one_trained_before_it() -> None:
    config = settings(momentum=0.9)
    _, backend, _, _ = make(config)
    start = backend.flat.vector.clone()
    alone = backend.train(start, 1, np.arange(10), 1).vector.clone()
    backend.train(start, 0, np.arange(10, 30), 1)
    assert torch.equal(backend.train(start, 1, np.arange(10), 1).vector, alone)
    assert not torch.equal(backend.train(start, 1, np.arange(10), 2).vector, alone)


def test_a_diverged_client_says_so() -> None:
    _, backend, _, _ = make(settings(lr=1e300))
    assert not backend.train(backend.flat.vector.clone(), 0, np.arange(10), 1).finite
