"""The compact models f that clients train: ResNet-8 (CIFAR) and ResNet-50 (ImageNet), body and linear classifier."""

from __future__ import annotations

from torch import Tensor, nn

from fedscale.models.pointwise import PointwiseConv2d


class Classifier(nn.Module):
    """A body, images [B, 3, H, W] to features [B, feature_dim], and `classifier`, features to logits [B, classes]."""

    feature_dim: int
    classifier: nn.Linear

    def features(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


GROUP = 16  # channels of a group at least; of the sizes in Wu & He 2018 (Group Normalization, table 3) the best, 24.2%


def norm_of(kind: str, channels: int) -> nn.Module:
    """Batch norm, or group norm in as many groups of GROUP channels or more as divide them evenly."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max((n for n in range(1, channels // GROUP + 1) if channels % n == 0), default=1), channels)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut, which is a 1 × 1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str = "batch") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm_of(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm_of(norm, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            convolution = PointwiseConv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, norm_of(norm, channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet8(Classifier):
    """A 3 × 3 stem of `width` channels, BasicBlocks of 1, 2 and 4 times that with strides 1, 2, 2, mean over pixels.

    At width 64: 1,227,594 parameters with 10 classes, 1,250,724 with 100 (METHOD.md, the protocol of CReFF). `norm` is
    `batch`, the protocol's, or `group`.
    """

    def __init__(self, num_classes: int, width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = norm_of(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = BasicBlock(width, width, stride=1, norm=norm)
        self.layer2 = BasicBlock(width, 2 * width, stride=2, norm=norm)
        self.layer3 = BasicBlock(2 * width, 4 * width, stride=2, norm=norm)
        self.feature_dim = 4 * width
        self.classifier = nn.Linear(self.feature_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return out.mean(dim=(2, 3))


class ResNet50(Classifier):
    """torchvision's ResNet-50, randomly initialised, with its ordinary ImageNet stem at every image size."""

    def __init__(self, num_classes: int) -> None:
        from torchvision.models import resnet50  # only here: importing torchvision takes a second

        super().__init__()
        self.body = resnet50(weights=None)
        self.feature_dim = self.body.fc.in_features
        self.body.fc = nn.Identity()
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)
