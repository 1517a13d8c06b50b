"""Randomness as a function of (seed, purpose, ...), never of a rank, an order or an earlier draw.

Resuming therefore needs no generator state: the numbers of round 7 of client 3 can be drawn at any time, anywhere.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(seed, "order", round, client)`; equal arguments, equal seed."""
    words = "\x1f".join(f"{type(word).__name__}:{word}" for word in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A counter-based (Philox) generator of its own for one purpose."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *purpose)))


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator of its own for one purpose; its draws are moved to the device, so that all devices agree."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))
