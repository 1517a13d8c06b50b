"""Small classifiers of federated benchmarks: logistic regression, a perceptron, LeNet-5, pfl-research's CNN."""

from __future__ import annotations

from torch import Tensor, nn

from fedscale.models.resnet import Classifier


class Small(Classifier):
    """A body given as a sequence, and a linear classifier on its `feature_dim` features."""

    def __init__(self, body: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.body, self.feature_dim = body, feature_dim
        self.classifier = nn.Linear(feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)


def linear(num_classes: int, image_size: int) -> Classifier:
    """Multinomial logistic regression on the pixels."""
    return Small(nn.Flatten(1), 3 * image_size**2, num_classes)


def mlp(num_classes: int, image_size: int) -> Classifier:
    """One hidden layer of 128 units."""
    return Small(nn.Sequential(nn.Flatten(1), nn.Linear(3 * image_size**2, 128), nn.ReLU()), 128, num_classes)


def lenet(num_classes: int, image_size: int) -> Classifier:
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998); the image's side is divisible by 4, 16 or more."""
    side = (image_size // 2 - 4) // 2
    body = nn.Sequential(
        nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(1), nn.Linear(16 * side**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
    )  # fmt: skip
    return Small(body, 84, num_classes)


def simple_cnn(num_classes: int, image_size: int) -> Classifier:
    """pfl-research's CIFAR-10 network: 1,626,442 parameters at 32 pixels and 10 classes."""
    side = (image_size - 4) // 2
    body = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(1), nn.Linear(64 * side**2, 128), nn.ReLU(), nn.Dropout(0.5),
    )  # fmt: skip
    return Small(body, 128, num_classes)
