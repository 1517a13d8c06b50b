"""A model's state as one flat vector, of which its parameters and running statistics are views.

Loading, averaging, an optimiser step or a drift term is then one operation on a vector, whatever the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatModel:
    """`model` with its state moved into `vector` [P + S]: P parameters, then S averaged statistics.

    `gradient` [P] holds the parameters' gradients likewise. 4-D weights lie channels-last inside their block, so that
    convolutions over channels-last images need no copy. Integer buffers (`num_batches_tracked`) stay outside: they
    are not averaged, and each load sets them back, so that no result depends on what a process trained before.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        parameters = list(model.parameters())
        statistics = [b for b in model.buffers() if b.is_floating_point()]
        self._counters = [(b, b.clone()) for b in model.buffers() if not b.is_floating_point()]
        device, dtype = parameters[0].device, parameters[0].dtype
        self.num_parameters = sum(p.numel() for p in parameters)
        self.vector = torch.empty(self.num_parameters + sum(b.numel() for b in statistics), device=device, dtype=dtype)
        self.gradient = torch.zeros(self.num_parameters, device=device, dtype=dtype)
        offset = 0
        with torch.no_grad():
            for tensor in [*parameters, *statistics]:
                view = _view(self.vector, offset, tensor.shape)
                view.copy_(tensor)
                tensor.data = view
                if isinstance(tensor, nn.Parameter):
                    tensor.grad = _view(self.gradient, offset, tensor.shape)
                offset += tensor.numel()

    @property
    def parameters(self) -> Tensor:
        """The parameters' part [P] of the vector."""
        return self.vector[: self.num_parameters]

    def load(self, vector: Tensor) -> None:
        """Make the model's state equal to `vector` [P + S]."""
        self.vector.copy_(vector)
        for counter, initial in self._counters:
            counter.copy_(initial)


def _view(flat: Tensor, offset: int, shape: torch.Size) -> Tensor:
    block = flat[offset : offset + shape.numel()]
    if len(shape) == 4:
        out_channels, in_channels, height, width = shape
        return block.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)
    return block.view(shape)
