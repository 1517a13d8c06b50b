"""Strided 1 × 1 convolutions as a slice and a convolution without stride: the same numbers, past a defect of oneDNN.

oneDNN's weight gradient of such a convolution writes past its workspace when images are channels-last and have fewer
channels than a vector register (8 with AVX2, 16 with AVX-512): wrong numbers, a hang or a crash, with any number of
threads (uxlfoundation/oneDNN issue 6035; reproduced with torch 2.15).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseConv2d(nn.Conv2d):
    """A Conv2d with a 1 × 1 kernel and no padding, which takes the pixels of its stride first."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(strided(x, self.stride), self.weight, self.bias, 1, 0, 1, self.groups)


def strided(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Every stride-th pixel of images [B, C, H, W], channels-last kept."""
    return x[:, :, :: stride[0], :: stride[1]]


def is_pointwise(module: nn.Module) -> bool:
    """Whether the module is a convolution that the defect is about."""
    return isinstance(module, nn.Conv2d) and {*module.kernel_size} == {1} and {*module.stride} != {1}
