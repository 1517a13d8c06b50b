"""The strong view: each operation is what Pillow's is, and a sample's view depends on its own bits alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from fedscale.federated.draws import draw
from fedscale.federated.strong import OPERATIONS, _operated, strongly_augmented

SIDE = 16
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8))


def operated(name: str, strength: float, negative: bool = False) -> np.ndarray:
    """All images under one operation."""
    count = len(IMAGES)
    chosen, amount = torch.full((count,), OPERATIONS.index(name)), torch.full((count,), int(strength * 65536))
    return _operated(IMAGES.int(), chosen, amount, torch.full((count,), int(negative))).numpy()


PILLOW: dict[str, tuple[float, bool, Callable[[Image.Image], Image.Image], int]] = {
    "brightness": (0.5, False, lambda image: ImageEnhance.Brightness(image).enhance(1.45), 1),
    "contrast": (0.5, True, lambda image: ImageEnhance.Contrast(image).enhance(0.55), 1),
    "colour": (0.25, False, lambda image: ImageEnhance.Color(image).enhance(1.225), 1),
    "posterise": (0.5, False, lambda image: ImageOps.posterize(image, 6), 0),
    "solarise": (0.5, False, lambda image: ImageOps.solarize(image, 128), 0),
    "autocontrast": (0.1, True, ImageOps.autocontrast, 1),
    "invert": (0.9, False, ImageOps.invert, 0),
}


@pytest.mark.parametrize("name", PILLOW)
def test_colours_change_as_pillows_do(name: str) -> None:
    strength, negative, wanted, tolerance = PILLOW[name]
    found = operated(name, strength, negative)
    for image, ours in zip(IMAGES.numpy(), found, strict=True):
        theirs = np.asarray(wanted(Image.fromarray(image)), dtype=int)
        assert np.abs(ours - theirs).max() <= tolerance
        assert (ours != image).any()


@pytest.mark.parametrize("negative", [False, True])
def test_a_quarter_of_the_side_is_shifted_and_grey_comes_in(negative: bool) -> None:
    found = operated("translate_x", 0.25 / 0.45 + 1e-4, negative)
    moved, wanted = SIDE // 4, IMAGES.numpy()
    kept = (found[:, :, moved:], wanted[:, :, :-moved]) if negative else (found[:, :, :-moved], wanted[:, :, moved:])
    assert np.array_equal(*kept)
    assert (found[:, :, :moved] if negative else found[:, :, -moved:] == 128).all()
    transposed = operated("translate_y", 0.25 / 0.45 + 1e-4, negative)
    assert np.array_equal(transposed[:, :-moved] if not negative else transposed[:, moved:],
                          wanted[:, moved:] if not negative else wanted[:, :-moved])  # fmt: skip


def test_a_turn_and_a_shear_are_pillows_but_for_pixels_on_an_edge() -> None:
    # Pillow turns counter-clockwise around the centre; its affine map takes pixel centres.
    for image, ours in zip(IMAGES.numpy(), operated("rotate", 20 / 30), strict=True):
        theirs = np.asarray(Image.fromarray(image).rotate(20, fillcolor=(128,) * 3))
        assert (ours == theirs).all(-1).mean() > 0.95
    half = SIDE / 2
    for image, ours in zip(IMAGES.numpy(), operated("shear_x", 0.5), strict=True):
        matrix = (1, 0.15, -0.15 * half, 0, 1, 0)
        theirs = np.asarray(
            Image.fromarray(image).transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, fillcolor=(128,) * 3)
        )
        assert (ours == theirs).all(-1).mean() > 0.95


def bits(count: int) -> tuple[Tensor, Tensor]:
    keys, numbers = torch.tensor(5), torch.arange(count)
    return draw(keys, numbers), draw(keys, numbers + (1 << 40))


def test_a_view_is_the_same_in_any_batch() -> None:
    many = IMAGES.repeat(20, 1, 1, 1)
    first, second = bits(len(many))
    whole = strongly_augmented(many, first, second)
    parts = [strongly_augmented(many[i : i + 7], first[i : i + 7], second[i : i + 7]) for i in range(0, len(many), 7)]
    assert whole.dtype == torch.uint8 and torch.equal(whole, torch.cat(parts))


def test_all_operations_are_drawn_and_an_eighth_to_a_quarter_of_an_image_is_blackened() -> None:
    first, second = bits(3000)
    counts = torch.bincount((first & 0xFFFF) * len(OPERATIONS) >> 16, minlength=len(OPERATIONS))
    assert counts.min() > 180, "250 each are expected"
    white = torch.full((3000, SIDE, SIDE, 3), 7, dtype=torch.uint8)  # no operation makes black of it but a few
    holes = (strongly_augmented(white, first, second) == 0).all(-1).float().mean((1, 2))
    assert 0.12 < holes.median() <= 0.25
    signs = (first >> 32 & 1).float().mean()
    assert 0.45 < signs < 0.55
