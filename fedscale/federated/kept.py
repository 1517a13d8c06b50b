"""Tallies that a client keeps between rounds (`Method.keeps`): a row for each client in a table that all ranks hold."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedscale.federated.methods.base import Method


def kept_size(method: Method) -> int:
    """Numbers of a client's row."""
    return sum(math.prod(method.tallies[name]) for name in method.keeps)


def put_kept(method: Method, tallies: Mapping[str, Tensor], rows: Tensor) -> None:
    """Fill the first L of the lanes' kept tallies from their clients' rows [L, numbers]."""
    parts = rows.split([math.prod(method.tallies[name]) for name in method.keeps], dim=1)
    for name, part in zip(method.keeps, parts, strict=True):
        tallies[name][: len(rows)].copy_(part.view(len(rows), *method.tallies[name]))


def take_kept(method: Method, tallies: Mapping[str, Tensor], lanes: int) -> Tensor | None:
    """The rows float64 [L, numbers] of what the first L lanes keep; None where that is nothing."""
    if not method.keeps:
        return None
    return torch.cat([tallies[name][:lanes].flatten(1).double() for name in method.keeps], dim=1)
