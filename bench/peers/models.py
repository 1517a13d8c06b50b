"""The workloads' models in torch, and the file with data and initial weights that all peers read.

`python bench/peers/models.py --workload lr FILE.npz` writes that file; torch is needed, of any peer or of the project.
Models take floats [B, C, H, W] and give logits. Weights fit fedscale's ResNet8 by name; its file is not imported, since
the package is absent from the peers' environments and the peers are to be measured on torch's own layers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BENCH = Path(__file__).absolute().parents[1]
sys.path.insert(0, str(BENCH))  # scripts run in the peers' environments, where the project is not installed

from workloads import WORKLOADS, Workload, make_data, save_npz  # noqa: E402


def logistic_regression(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))


def mlp(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, classes))


def lenet(classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max pooling; the first convolution pads 28 × 28 by 2."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


def simple_cnn(classes: int) -> nn.Module:
    """The CIFAR-10 network of pfl-research's benchmarks."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(12544, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


class ResNet8(nn.Module):
    """The architecture of fedscale.models.ResNet8, with its names, from torch's own layers and initialisation."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = Block(width, width, stride=1)
        self.layer2 = Block(width, 2 * width, stride=2)
        self.layer3 = Block(2 * width, 4 * width, stride=2)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return self.classifier(self.layer3(self.layer2(self.layer1(out))).mean(dim=(2, 3)))


def resnet8(classes: int) -> nn.Module:
    return ResNet8(classes, width=16)


MODELS = {"lr": logistic_regression, "mlp": mlp, "lenet": lenet, "simple_cnn": simple_cnn, "resnet8": resnet8}


def build(workload: Workload) -> nn.Module:
    """The model, with whatever weights torch's generator gives it."""
    model = MODELS[workload.model](workload.classes)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == workload.parameters, f"{workload.name}: {found} parameters, expected {workload.parameters}"
    return model


def initial_weights(workload: Workload) -> dict[str, NDArray]:
    """torch's own initialisation under the workload's seed, the state dict as arrays; the caller's draws go on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(workload.seed)
        return {name: value.numpy().copy() for name, value in build(workload).state_dict().items()}


def load_weights(model: nn.Module, weights: dict[str, NDArray]) -> nn.Module:
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return model


@torch.no_grad()
def mean_loss(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Mean cross-entropy over all of `inputs` without dropout.

    BatchNorm normalises by each batch's own statistics, since peers differ in what they do with running ones. `batch`
    images in their order, so that the value is the same wherever the weights are. The model's modes are left changed.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 0.0  # statistics are used and not kept
    total = 0.0
    for start in range(0, len(labels), batch):
        logits = model(inputs[start : start + batch])
        total += nn.functional.cross_entropy(logits, labels[start : start + batch], reduction="sum").item()
    return total / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("file", type=Path, help="the .npz to write")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    save_npz(options.file, make_data(workload), initial_weights(workload))


if __name__ == "__main__":
    main()
