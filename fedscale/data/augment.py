"""Batched augmentation and normalisation of uint8 images, as tensor code with per-image randomness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PAD = 4  # pixels on each side before the random crop [C: the published protocol]


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in channels-last memory: (x / 255 − mean) / std per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    return (images * scale - shift).permute(0, 3, 1, 2)


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Random crop (zero padding of 4) and horizontal flip, drawn for each image; uint8 [B, H, W, 3] in and out.

    `kind` is `none`, `flip` or `crop_flip`. The draws come from the CPU `generator`, so that they are the same on
    every device.
    """
    if kind == "none":
        return images
    batch, device = len(images), images.device
    offsets = torch.randint(0, 2 * PAD + 1, (2, batch), generator=generator) if kind == "crop_flip" else None
    flipped = torch.rand(batch, generator=generator) < 0.5
    return crop_and_flip(images, None if offsets is None else offsets.to(device), flipped.to(device))


def augment_each(images: Tensor, kind: str, numbers: Sequence[int]) -> Tensor:
    """`augment` by one uniform number of 0 to 2^62 for each image, so that its draw depends on no other image."""
    if kind == "none":
        return images
    drawn = torch.tensor(numbers, dtype=torch.int64)
    flipped, drawn = drawn % 2 == 1, drawn // 2
    sides = 2 * PAD + 1
    offsets = torch.stack([drawn % sides, drawn // sides % sides]) if kind == "crop_flip" else None
    device = images.device
    return crop_and_flip(images, None if offsets is None else offsets.to(device), flipped.to(device))


def crop_and_flip(images: Tensor, offsets: Tensor | None, flipped: Tensor) -> Tensor:
    """Crops of images [B, H, W, C] padded by PAD, and mirror images where `flipped` [B] (bool) says so.

    `offsets` int64 [2, B] from 0 to 2·PAD are each crop's first row and column in the padded image; None: no crop.
    """
    batch, height, width, _ = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(batch, height)
    columns = torch.arange(width, device=device).expand(batch, width)
    if offsets is not None:
        rows, columns = rows + offsets[0][:, None], columns + offsets[1][:, None]
        images = torch.nn.functional.pad(images, (0, 0, PAD, PAD, PAD, PAD))
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    return images[torch.arange(batch, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
