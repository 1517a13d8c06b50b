"""What a round costs its clients: bytes over the network, and floating-point operations of training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fedscale.config.schema import FederateConfig
from fedscale.federated.flat import FlatLayout
from fedscale.federated.methods import Method

BYTES = 4  # a number in fp32, as a client would send it


@dataclass(frozen=True)
class RoundCost:
    """A round's cohort together, as the mean over the cohorts that could be drawn."""

    clients: float  # of a cohort that hold images
    bytes_down: float  # the model with its averaged statistics, and the method's broadcasts
    bytes_up: float  # the same model, and the method's uploads
    flops: float  # the local epochs' forward and backward passes; what a method computes beside them is not in it


def image_flops(model: nn.Module, image_size: int) -> int:
    """Floating-point operations (a multiply-add is two) of the loss and its gradients for one image, counted by torch.

    The passes run on a copy without memory: they cost nothing, draw no random number and leave the model as it is.
    """
    from torch.utils.flop_counter import FlopCounterMode  # only here: it brings in half of torch's compiler

    shapes = copy.deepcopy(model).to("meta").eval()  # eval: one image gives batch norm no variance
    images = torch.zeros(1, 3, image_size, image_size, device="meta")
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        F.cross_entropy(shapes(images), torch.zeros(1, dtype=torch.long, device="meta")).backward()
    return int(counter.get_total_flops())


def round_cost(
    layout: FlatLayout, method: Method, settings: FederateConfig, held: Sequence[int], image_flops: int
) -> RoundCost:
    """A round's cost; `held` are the images of each client, `layout` is the whole model's."""
    parameters = sum(entry.numel for entry in layout.parameters)
    model = parameters + sum(entry.numel for entry in layout.statistics)
    small = sum(math.prod(shape) for shape in getattr(method, "reports", {}).values())
    drawn = settings.clients_per_round / len(held)  # a client's chance to be in a cohort
    clients = drawn * sum(size > 0 for size in held)
    return RoundCost(
        clients=clients,
        bytes_down=clients * BYTES * (model + len(method.broadcast) * parameters),
        bytes_up=clients * BYTES * (model + len(method.uploads) * parameters + small),
        flops=float(drawn * sum(held) * settings.local_epochs * image_flops),
    )
