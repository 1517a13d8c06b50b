"""A student that learns an ensemble's distributions over the classes on images: what FedDF and FedBE share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batches(count: int, batch_size: int, steps: int, draws: torch.Generator) -> Iterator[Tensor]:
    """Rows int64 [B] of `steps` batches, all of one size: each epoch in an order of its own, its remainder left out."""
    size = min(batch_size, count)
    while steps > 0:
        for rows in torch.randperm(count, generator=draws)[: count - count % size].split(size)[:steps]:
            yield rows
            steps -= 1


def step(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    share: float = 1.0,
    clip_norm: float = 0.0,
) -> None:
    """One step on `share` times the mean of KL(targets ‖ softmax(student / temperature)); targets are [B, C]."""
    log_shares = F.log_softmax(student(images) / temperature, dim=1)
    loss = share * F.kl_div(log_shares, targets, reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    if clip_norm:
        nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad()  # the model is the engine's; no gradient stays with it
