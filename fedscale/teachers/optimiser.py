"""The training schedule of the teachers: Muon for the matrices of the blocks, AdamW for all else, cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: epochs (a fraction is allowed), images a batch, peak learning rates."""

    epochs: float
    batch_size: int = 128
    lr: float = 1e-3  # AdamW
    muon_lr: float = 0.01
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of all steps
    augment: str = "crop_flip"
    seed: int = 0

    def steps(self, num_images: int) -> int:
        return max(1, round(self.epochs * num_images / self.batch_size))

    def batches(self, num_images: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Index tensors [batch_size], epoch after epoch without a break between them."""
        order = torch.empty(0, dtype=torch.long)
        for _ in range(self.steps(num_images)):
            while len(order) < self.batch_size:
                order = torch.cat([order, torch.randperm(num_images, generator=generator)])
            batch, order = order[: self.batch_size], order[self.batch_size :]
            yield batch

    def factor(self, done: float) -> float:
        """The learning rate's factor when the share `done` of all steps is behind."""
        return min(1.0, (done + 1e-3) / self.warmup, 0.5 * (1 + math.cos(math.pi * done)) + 1e-3)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix is made orthogonal by five Newton-Schulz steps (Keller Jordan, 2024).

    torch.optim.Muon takes these steps in bfloat16, which on a CPU without bfloat16 units costs more than the model's
    own forward and backward pass; here they are float32, and matrices of one shape take them together.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__([{"params": matrices}], {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in shapes.items():
                updates = []
                for matrix in matrices:
                    assert matrix.grad is not None
                    buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    buffer.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(matrix.grad, buffer, group["momentum"]))
                stretch = max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, update in zip(matrices, _orthogonal(torch.stack(updates)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-group["lr"] * stretch)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [B, m, n] with their singular values moved close to 1; coefficients as published."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide if matrices.shape[1] <= matrices.shape[2] else wide.mT


class Optimisers:
    """Both optimisers as one; `step` does the backward pass, clips the gradient's norm to 1 and updates."""

    def __init__(self, parts: list[torch.optim.Optimizer], schedule: Schedule) -> None:
        self._parts, self._schedule = parts, schedule
        self._peaks = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self, loss: Tensor, done: float) -> None:
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss {loss.item()} after the share {done:.3f} of the steps: training has diverged")
        for part, peaks in zip(self._parts, self._peaks, strict=True):
            part.zero_grad(set_to_none=True)
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * self._schedule.factor(done)
        loss.backward()
        for part in self._parts:
            torch.nn.utils.clip_grad_norm_([p for group in part.param_groups for p in group["params"]], 1.0)
            part.step()


def optimisers(model: nn.Module, schedule: Schedule) -> Optimisers:
    """Muon (Keller Jordan, 2024) on the weight matrices inside transformer blocks, AdamW on the rest that trains."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    blocks = ("resblocks.", "layers.")  # open_clip's, transformers'
    matrices = [p for name, p in trained.items() if p.ndim == 2 and any(block in name for block in blocks)]
    chosen = {id(p) for p in matrices}
    decayed = [p for p in trained.values() if id(p) not in chosen and p.ndim >= 2]
    plain = [p for p in trained.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98))]
    if matrices:
        parts.append(Muon(matrices, lr=schedule.muon_lr, weight_decay=schedule.weight_decay))
    return Optimisers(parts, schedule)
