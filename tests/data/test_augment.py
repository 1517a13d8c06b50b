"""Crop and flip move pixels, draw for each image, and agree with a plain loop."""

import pytest
import torch

from fedscale.data.augment import PAD, augment, normalise


def numbered(batch: int, size: int = 6) -> torch.Tensor:
    return torch.randint(1, 256, (batch, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_crop_and_flip_equal_a_plain_loop_over_images() -> None:
    images = numbered(20)
    result = augment(images, "crop_flip", torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    offsets = torch.randint(0, 2 * PAD + 1, (2, 20, 1), generator=draws)
    flips = torch.rand((20, 1), generator=draws) < 0.5
    for i, image in enumerate(images):
        padded = torch.zeros(6 + 2 * PAD, 6 + 2 * PAD, 3, dtype=torch.uint8)
        padded[PAD : PAD + 6, PAD : PAD + 6] = image
        top, left = int(offsets[0, i]), int(offsets[1, i])
        crop = padded[top : top + 6, left : left + 6]
        assert torch.equal(result[i], crop.flip(1) if flips[i] else crop)
    assert 0 < flips.sum() < 20


def test_flip_alone_keeps_every_pixel_and_none_changes_nothing() -> None:
    images = numbered(50)
    flipped = augment(images, "flip", torch.Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(2)).flatten(1).all(1)
    assert (same | mirrored).all() and same.any() and mirrored.any()
    assert augment(images, "none", torch.Generator()) is images


def test_normalise_is_the_formula_in_channels_last_memory() -> None:
    images = numbered(3)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    result = normalise(images, mean, std)
    reference = (images.permute(0, 3, 1, 2).double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    assert result.dtype == torch.float32
    assert result.double().numpy() == pytest.approx(reference.numpy(), abs=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)
