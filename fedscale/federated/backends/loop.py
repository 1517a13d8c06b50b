"""The `loop` backend: one model, one client after another, every optimiser step one operation on the flat vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedscale.config.schema import Config
from fedscale.data.augment import augment, normalise
from fedscale.federated.flat import FlatModel
from fedscale.federated.methods import Method
from fedscale.rng import torch_generator


@dataclass(frozen=True)
class ClientResult:
    """What a client's training gives: its vector [P + S] (a view, valid until the next client) and its mean loss."""

    vector: Tensor
    loss: float
    steps: int

    @property
    def finite(self) -> bool:
        """False when the client diverged."""
        return bool(torch.isfinite(self.vector).all())


class LoopBackend:
    """Trains clients of a store of uint8 images [N, H, W, 3] and labels [N], both on the model's device."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, method: Method, config: Config) -> None:
        self.flat = FlatModel(model)
        self._images, self._labels = images, labels
        self._method, self._config = method, config
        self._momentum = torch.zeros_like(self.flat.gradient) if config.federate.momentum else None

    def train(self, start: Tensor, client: int, samples: np.ndarray, round_number: int) -> ClientResult:
        """Local training of one client (indices `samples`) from the global vector `start` [P + S].

        Orders and augmentations are functions of (seed, round, client, epoch) alone. The last batch may be smaller.
        """
        settings, seed = self._config.federate, self._config.seed
        flat = self.flat
        flat.load(start)
        flat.model.train()
        if self._momentum is not None:
            self._momentum.zero_()
        indices = torch.from_numpy(samples)
        total = torch.zeros((), dtype=torch.float64, device=self._images.device)
        steps = 0
        for epoch in range(settings.local_epochs):
            order = torch.randperm(len(indices), generator=torch_generator(seed, "order", round_number, client, epoch))
            draws = torch_generator(seed, "augment", round_number, client, epoch)
            for batch in indices[order].split(settings.batch_size):
                total += self._step(batch.to(self._images.device), draws)
                steps += 1
        return ClientResult(flat.vector, float(total) / max(1, steps), steps)

    def _step(self, batch: Tensor, draws: torch.Generator) -> Tensor:
        settings, data, flat = self._config.federate, self._config.data, self.flat
        images = normalise(augment(self._images[batch], settings.augment, draws), data.mean, data.std)
        flat.gradient.zero_()
        loss = self._method.loss(flat.model(images), self._labels[batch])
        loss.backward()
        update = flat.gradient
        with torch.no_grad():
            if settings.weight_decay:
                update.add_(flat.parameters, alpha=settings.weight_decay)
            if self._momentum is not None:
                update = self._momentum.mul_(settings.momentum).add_(update)
            flat.parameters.sub_(update, alpha=settings.lr)
        return loss.detach()
