"""A strongly augmented view of images: two operations of AutoAugment's set, then Cutout; in whole numbers throughout.

FedYoYo's code crops and flips, then applies AutoAugment's learnt CIFAR-10 policy and Cutout. Here the two operations
and their strengths are drawn evenly, as RandAugment does (Cubuk et al. 2020), of twelve of AutoAugment's: its policies
and their probabilities are learnt for one data set, and Sharpness and Equalize would cost more than all others [D].
Whole numbers, so that a sample's view is the same bits in whatever batch, lane or rank it is drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OPERATIONS = (
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
    "brightness", "contrast", "colour", "posterise", "solarise", "autocontrast", "invert",
)  # fmt: skip
ONE = 1 << 16  # of fixed-point numbers
SHEAR, TRANSLATE, DEGREES, BLEND = 0.3, 0.45, 30.0, 0.9  # the largest, either way; of the side; AutoAugment's
GREY = 128  # what comes in from outside
HOLE = 2  # the square that Cutout blackens has 1/2 of the side: 16 of 32 pixels [C]


def strongly_augmented(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """uint8 images [N, H, W, 3] under two operations and Cutout, by 64 random bits each: int64 [N], twice.

    Of each, 16 bits choose the operation, 16 its strength, one its sign; 16 of each more are the hole's centre.
    """
    pixels = images.int()
    for bits in (first, second):
        pixels = _operated(pixels, (bits & 0xFFFF) * len(OPERATIONS) >> 16, bits >> 16 & 0xFFFF, bits >> 32 & 1)
    height, width = images.shape[1:3]
    rows = _inside(height, (first >> 40 & 0xFFFF) * height >> 16, images.device)
    columns = _inside(width, (second >> 40 & 0xFFFF) * width >> 16, images.device)
    hole = rows[:, :, None] & columns[:, None, :]
    return pixels.masked_fill(hole[..., None], 0).to(torch.uint8)


def _inside(side: int, centres: Tensor, device: torch.device) -> Tensor:
    """Which of the places [N, side] are in the hole around `centres` [N]; it is cut off at the edge."""
    away, half = torch.arange(side, device=device) - centres[:, None], side // HOLE // 2
    return (away >= -half) & (away < half)


def _operated(pixels: Tensor, chosen: Tensor, strength: Tensor, negative: Tensor) -> Tensor:
    """One operation on each image [N, H, W, 3] (int32); strength int64 [N] below 1 in fixed point."""
    signed = torch.where(negative == 1, -strength, strength)

    def only(*names: str) -> Tensor:
        return sum((chosen == OPERATIONS.index(name) for name in names[1:]), chosen == OPERATIONS.index(names[0])) > 0

    moved = _moved(pixels, {name: torch.where(only(name), signed, 0) for name in OPERATIONS[:5]})
    blended = _blended(moved, only("contrast"), only("colour"), torch.where(only(*OPERATIONS[5:8]), signed, 0))
    lost = torch.where(only("posterise"), strength * 5 >> 16, 0).int()[:, None, None, None]  # bits, up to 4
    threshold = torch.where(only("solarise"), strength >> 8, 256).int()
    threshold = torch.where(only("invert"), 0, threshold)[:, None, None, None]
    found = blended >> lost << lost
    found = torch.where(found >= threshold, 255 - found, found)
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    stretched = torch.where(high > low, (found - low) * 255 // (high - low).clamp(min=1), found)
    return torch.where(only("autocontrast")[:, None, None, None], stretched, found)


def _moved(pixels: Tensor, amounts: dict[str, Tensor]) -> Tensor:
    """Each image sheared, shifted or turned around its centre, by the nearest pixel; all but one amount are 0."""
    count, height, width, _ = pixels.shape
    device = pixels.device
    angles = amounts["rotate"].double() * (DEGREES * math.pi / 180 / ONE)
    cosine, sine = ((f(angles) * ONE).round().long()[:, None, None] for f in (torch.cos, torch.sin))

    def scaled(name: str, most: float) -> Tensor:
        return (amounts[name] * round(most * ONE) >> 16)[:, None, None]

    # Twice the distance from the centre, so that it is whole; of that, the place where each pixel comes from.
    x = 2 * torch.arange(width, device=device)[None, None, :] - (width - 1)
    y = 2 * torch.arange(height, device=device)[None, :, None] - (height - 1)
    across = (cosine * x) - (sine * y) + scaled("shear_x", SHEAR) * y + scaled("translate_x", 2 * TRANSLATE * width)
    down = (sine * x) + (cosine * y) + scaled("shear_y", SHEAR) * x + scaled("translate_y", 2 * TRANSLATE * height)
    columns, rows = (across + width * ONE) >> 17, (down + height * ONE) >> 17
    within = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = torch.arange(count, device=device)[:, None, None]
    taken = pixels[places, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return taken.masked_fill(~within[..., None], GREY)


def _blended(pixels: Tensor, contrast: Tensor, colour: Tensor, amounts: Tensor) -> Tensor:
    """Each image moved away from, or towards, black, its mean grey (contrast) or its own grey (colour)."""
    parts = pixels.long()
    grey = (parts[..., 0] * 19595 + parts[..., 1] * 38470 + parts[..., 2] * 7471 + ONE // 2) >> 16  # ITU-R 601-2 luma
    size = grey.shape[1] * grey.shape[2]
    mean = ((2 * grey.sum((1, 2), keepdim=True) + size) // (2 * size)).expand_as(grey)
    base = torch.where(contrast[:, None, None], mean, torch.where(colour[:, None, None], grey, 0))[..., None]
    factor = (ONE + (amounts * round(BLEND * ONE) >> 16))[:, None, None, None]
    return ((base * ONE + factor * (parts - base) + ONE // 2) >> 16).clamp(0, 255).int()
