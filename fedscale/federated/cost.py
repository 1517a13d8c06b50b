"""What a round costs its clients: bytes over the network, and floating-point operations of training."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fedscale.config.schema import FederateConfig
from fedscale.federated.flat import FlatLayout
from fedscale.federated.methods.base import Method

BYTES = 4  # a number in fp32, as a client would send it


@dataclass(frozen=True)
class RoundCost:
    """A round's cohort together, as the mean over the cohorts that could be drawn."""

    clients: float  # of a cohort that hold images
    bytes_down: float  # the model with its averaged statistics, and the method's broadcasts
    bytes_up: float  # the same model, and the method's uploads
    flops: float  # of the local epochs' passes, those through models that the method compares with included


class ImageFlops(NamedTuple):
    """Floating-point operations for one image; a multiply-add is two."""

    forward: int
    backward: int


def image_flops(model: nn.Module, image_size: int) -> ImageFlops:
    """The operations of the loss and of its gradients, counted by torch: convolutions, products and attention.

    The passes run on a copy without memory: they cost nothing, draw no random number and leave the model as it is.
    """
    from torch.utils.flop_counter import FlopCounterMode  # only here: it brings in half of torch's compiler

    shapes = copy.deepcopy(model).to("meta").eval()  # eval: one image gives batch norm no variance
    images = torch.zeros(1, 3, image_size, image_size, device="meta")
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(shapes(images), torch.zeros(1, dtype=torch.long, device="meta"))
        forward = counter.get_total_flops()
        loss.backward()
    return ImageFlops(forward, counter.get_total_flops() - forward)


def round_cost(
    layout: FlatLayout, method: Method, settings: FederateConfig, held: Sequence[int], image: ImageFlops
) -> RoundCost:
    """A round's cost; `held` are the images of each client, `layout` is the whole model's."""
    parameters = sum(entry.numel for entry in layout.parameters)
    model = parameters + sum(entry.numel for entry in layout.statistics)
    views = 1 + len(method.views)
    passes = views * (image.forward + image.backward) + len(method.compares) * image.forward
    asked = "round" in method.survey_at  # with a forward pass before the cohort trains
    drawn = settings.clients_per_round / len(held)  # a client's chance to be in a cohort
    clients = drawn * sum(size > 0 for size in held)
    uploads = len(set(method.uploads) - set(method.unsent)) * parameters
    told = _sent(method, method.reports) + asked * _sent(method, method.surveys)
    return RoundCost(
        clients=clients,
        bytes_down=clients * BYTES * (model + len(method.broadcast) * parameters + _sent(method, method.shared)),
        bytes_up=clients * BYTES * (model + uploads + told),
        flops=float(drawn * sum(held) * (settings.local_epochs * passes + asked * image.forward)),
    )


def _sent(method: Method, tensors: Mapping[str, Sequence[int]]) -> int:
    return sum(math.prod(shape) for name, shape in tensors.items() if name not in method.unsent)
