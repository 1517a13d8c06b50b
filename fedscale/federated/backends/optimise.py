"""A client's optimiser: SGD with the method's terms, on the blocks of L clients at once."""

from __future__ import annotations

from fedscale.federated.lanes.state import Blocks, LaneView
from fedscale.federated.methods import Method


def descend(method: Method, view: LaneView, gradients: Blocks) -> None:
    """One step of the lanes' parameters, in place, as torch.optim.SGD takes it; `gradients` are overwritten."""
    settings = method.config
    if method.adjusts:
        method.adjust(view, gradients)
    if settings.weight_decay:
        gradients.add_(view.parameters, alpha=settings.weight_decay)
    if settings.momentum:
        gradients = view["momentum"].mul_(settings.momentum).add_(gradients)
    view.parameters.sub_(gradients, alpha=settings.lr)
