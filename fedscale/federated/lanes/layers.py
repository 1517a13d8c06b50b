"""Layers of L clients at once, each computing with its own client's weights. Activations are [B, L·C, …]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.federated.draws import keep_mask
from fedscale.federated.lanes.direct import DirectProduct, Sink
from fedscale.models.pointwise import is_pointwise, strided


class Unsupported(Exception):
    """A model that has no such form; the text names the operation."""


@dataclass
class Lanes:
    """What the layers of one model share: the lanes at work and their tensors by name, [L, *shape]."""

    count: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropout_keys: Tensor | None = None  # int64 [L]
    step: int | Tensor = 0  # the clients' own step, of which dropout masks are a function
    num_dropouts: int = 0
    sink: Sink | None = None  # where the weight gradients of the linear layers in `direct` go
    direct: set[str] = field(default_factory=set)
    gradients: dict[str, Tensor] = field(default_factory=dict)  # the sink's buffers by name


class LaneLayer(nn.Module):
    """A layer that stands for `module` at `path`, and finds its tensors by their names."""

    def __init__(self, module: nn.Module, path: str, lanes: Lanes) -> None:
        super().__init__()
        self.lanes = lanes
        self.path = path

    def flat(self, name: str) -> Tensor | None:
        """The tensor of all lanes, [L·first, …]: lane after lane in its first dimension; None where there is none."""
        tensor = self.lanes.tensors.get(f"{self.path}.{name}" if self.path else name)
        return None if tensor is None else tensor.flatten(0, 1)

    def stacked(self, name: str) -> Tensor | None:
        """The tensor of all lanes, [L, *shape]."""
        return self.lanes.tensors.get(f"{self.path}.{name}" if self.path else name)


class LaneConv(LaneLayer):
    """Convolutions as one with L times the groups."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d, path: str, lanes: Lanes) -> None:
        super().__init__(module, path, lanes)
        if module.padding_mode != "zeros":
            raise Unsupported(f"{path or 'Conv'}: padding_mode={module.padding_mode}")
        self._convolve = F.conv2d if isinstance(module, nn.Conv2d) else F.conv1d
        self._stride, self._padding = module.stride, module.padding
        self._dilation, self._groups = module.dilation, module.groups
        self._slice: tuple[int, ...] | None = None
        if is_pointwise(module) and module.padding in (0, (0, 0)):
            self._slice, self._stride = module.stride, (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self._slice is not None:
            x = strided(x, self._slice)
        groups = self.lanes.count * self._groups
        weight, bias = self.flat("weight"), self.flat("bias")
        assert weight is not None
        if x.device.type == "cpu":
            # Torch 2.15's CPU kernels give wrong weight gradients for grouped convolutions where a dimension of size 1
            # has a stride of its own, as views and slices of channels-last images have, and none for a single kernel.
            if groups > 1 and 1 in (len(x), *x.shape[2:]):
                x = x.clone(memory_format=torch.contiguous_format)
            if len(weight) == 1:
                weight = weight.clone(memory_format=torch.contiguous_format)
        return self._convolve(x, weight, bias, self._stride, self._padding, self._dilation, groups)


class LaneLinear(LaneLayer):
    """Linear layers as one batched product; [B, L·I] to [B, L·O]."""

    def __init__(self, module: nn.Linear, path: str, lanes: Lanes) -> None:
        super().__init__(module, path, lanes)
        self.weight = f"{path}.weight" if path else "weight"

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise Unsupported(f"{self.path or 'Linear'}: Linear on {x.dim()}-dimensional activations")
        lanes, weight, bias = self.lanes, self.stacked("weight"), self.stacked("bias")
        assert weight is not None
        x = x.view(len(x), lanes.count, -1).transpose(0, 1)  # [L, B, I]
        if lanes.sink is not None and self.weight in lanes.direct and weight.requires_grad:
            out = DirectProduct.apply(x, weight, lanes.gradients.get(self.weight), lanes.sink)
            out = out if bias is None else out + bias[:, None]
        elif bias is None:
            out = torch.bmm(x, weight.mT)
        else:
            out = torch.baddbmm(bias[:, None], x, weight.mT)
        return out.transpose(0, 1).flatten(1)


class LaneBatchNorm(LaneLayer):
    """Batch norm of L·C channels: statistics of a channel never mix lanes, so the ordinary kernel does it."""

    def __init__(self, module: nn.BatchNorm1d | nn.BatchNorm2d, path: str, lanes: Lanes) -> None:
        super().__init__(module, path, lanes)
        if module.momentum is None:
            raise Unsupported(f"{path or 'BatchNorm'}: momentum=None (a cumulative average)")
        self._momentum, self._eps, self._track = module.momentum, module.eps, module.track_running_stats

    def forward(self, x: Tensor) -> Tensor:
        training = self.training or not self._track
        return F.batch_norm(
            x,
            self.flat("running_mean"),
            self.flat("running_var"),
            self.flat("weight"),
            self.flat("bias"),
            training,
            self._momentum,
            self._eps,
        )


class LaneGroupNorm(LaneLayer):
    """Group norm of L times the groups."""

    def __init__(self, module: nn.GroupNorm, path: str, lanes: Lanes) -> None:
        super().__init__(module, path, lanes)
        self._groups, self._eps = module.num_groups, module.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.lanes.count * self._groups, self.flat("weight"), self.flat("bias"), self._eps)


class LaneLayerNorm(LaneLayer):
    """Layer norm over a lane's channels, or channels and pixels; [B, L·D] or [B, L·C, H, W]."""

    def __init__(self, module: nn.LayerNorm, path: str, lanes: Lanes) -> None:
        super().__init__(module, path, lanes)
        self._shape, self._eps = module.normalized_shape, module.eps

    def forward(self, x: Tensor) -> Tensor:
        lanes = self.lanes.count
        if tuple(x.shape[1:]) != (lanes * self._shape[0], *self._shape[1:]):
            raise Unsupported(f"{self.path or 'LayerNorm'}: LayerNorm over {list(self._shape)} of {list(x.shape)}")
        normal = F.layer_norm(x.unflatten(1, (lanes, -1)), self._shape, eps=self._eps)  # [B, L, C, …]
        weight, bias = self.stacked("weight"), self.stacked("bias")
        normal = normal if weight is None else normal * weight
        normal = normal if bias is None else normal + bias
        return normal.flatten(1, 2)


class LaneFlatten(LaneLayer):
    """Flattening of everything but the batch, whose gradient comes back channels-last.

    Left to itself it comes back contiguous, and pooling, activation and convolution before it copy whole images.
    """

    def __init__(self, module: nn.Flatten, path: str, lanes: Lanes) -> None:
        super().__init__(module, path, lanes)
        if (module.start_dim, module.end_dim) != (1, -1):
            raise Unsupported(f"{path or 'Flatten'}: Flatten of dimensions {module.start_dim} to {module.end_dim}")

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            x = _Contiguous.apply(x)
        return x.flatten(1)


class _Contiguous(torch.autograd.Function):
    """A channels-last tensor made contiguous; its gradient is made channels-last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=torch.channels_last)


class LaneDropout(LaneLayer):
    """Dropout by the clients' own numbers: a mask is a function of (client, step, layer), whatever the backend."""

    def __init__(self, module: nn.Dropout, path: str, lanes: Lanes) -> None:
        super().__init__(module, path, lanes)
        self._keep = 1 - module.p
        self._number = lanes.num_dropouts
        lanes.num_dropouts += 1

    def forward(self, x: Tensor) -> Tensor:
        lanes = self.lanes
        if not self.training or self._keep == 1 or lanes.dropout_keys is None:
            return x
        if self._keep == 0:
            return x * 0.0
        shape = (lanes.count, len(x), x.shape[1] // lanes.count, *x.shape[2:])
        counter = lanes.step * lanes.num_dropouts + self._number
        mask = keep_mask(lanes.dropout_keys, counter, x.numel() // lanes.count, self._keep)
        mask = mask.reshape(shape).transpose(0, 1).reshape(x.shape)
        return x * (mask.to(x.dtype) / self._keep)
