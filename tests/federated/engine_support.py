"""Small engines on random images, in this process or as the ranks of a torchrun."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedscale.config import overlaid
from fedscale.config.schema import Config
from fedscale.distributed.mesh import Mesh
from fedscale.federated.data import RoundData
from fedscale.federated.engine import Engine
from fedscale.federated.setup import build_engine
from fedscale.models.resnet import Classifier, ResNet8

SIZES = (13, 9, 7, 6, 6, 5, 3, 1)


def settings(**federate: Any) -> Config:
    """Three rounds of six clients of eight, one epoch of batches of four."""
    small = {"rounds": 3, "clients_per_round": 6, "local_epochs": 1, "batch_size": 4, "lr": 0.05, "backend": "loop"}
    return overlaid(Config(), {"data": {"partition": {"clients": 8}}, "federate": {**small, **federate}})


def group_norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Linear(32, 3),
    )  # fmt: skip


class Small(Classifier):
    """A convolution, batch norm, and 16 features: what a method's rounds need, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.feature_dim, self.classifier = 16, nn.Linear(16, 3)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.pool(torch.relu(self.norm(self.conv(images)))).flatten(1)


class Softened(nn.Module):
    """A model that branches on its numbers, which neither lanes nor vmap can."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(432, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = self.linear(images.flatten(1)).softmax(1)
        return out * (2.0 if float(out.detach().sum()) > 0 else 1.0)


def dropout_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(1), nn.Linear(432, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: ResNet8(3, 4),
    "small": Small,
    "group_norm": group_norm_net,
    "dropout": dropout_net,
    "softened": Softened,
}


def make_engine(
    config: Config,
    model: str = "resnet8",
    mesh: Mesh | None = None,
    folder: Path | None = None,
    double: bool = True,
    resident: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """An engine on 50 random images of 12 × 12, of which a CLIP has random views; the same on every rank."""
    torch.manual_seed(0)
    net = MODELS[model]()
    net = net.double() if double else net
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 12, 12, 3), dtype=np.uint8)
    labels = generator.integers(0, 3, 50)
    order = generator.permutation(50)
    clients = np.split(order, np.cumsum(SIZES)[:-1])
    augment = config.federate.augment
    mesh = mesh or Mesh()
    data = RoundData(images, labels, mesh.device, (0.5,) * 3, (0.25,) * 3, augment, resident)
    data.add_side("clip", torch.from_numpy(generator.normal(0, 5, (50, 3)).astype(np.float32)))
    texts = torch.from_numpy(generator.normal(size=(3, 16)))  # as wide as the features of resnet8
    teacher = {"clip": texts / texts.norm(dim=1, keepdim=True)}
    return build_engine(config, net, data, clients, mesh, folder, say, teacher=teacher)


def trained(engine: Engine, rounds: Sequence[int] = (1, 2, 3)) -> torch.Tensor:
    """The whole global vector after the rounds."""
    for number in rounds:
        assert engine.round(number) is not None
    return engine.host.whole_of(engine.server.vector).clone()
