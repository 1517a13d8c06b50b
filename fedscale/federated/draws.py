"""Counter-based randomness for clients: a number is a function of (seed, purpose, round, client, counter).

SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014) as tensor code, whose n-th
number is a hash of key + n·γ. Neither lanes, ranks, devices nor backends can therefore change what a client draws.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedscale.rng import derive

Words = TypeVar("Words", np.ndarray, Tensor)

GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64
FIRST = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
SECOND = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def client_keys(seed: int, purpose: str, round_number: int, clients: np.ndarray) -> np.ndarray:
    """A key int64 [K] for each client, for one purpose in one round."""
    base = np.int64(derive(seed, purpose, round_number))
    return _mixed(_mixed(np.asarray(clients, dtype=np.int64) * GAMMA) ^ base)


def draw(keys: Words, counters: Words) -> Words:
    """64 random bits (int64) for each key at each counter; the two are broadcast. numpy or torch, equal numbers."""
    return _mixed(keys + (counters + 1) * GAMMA)


def _mixed(words: Words) -> Words:
    # Arithmetic shifts drag the sign along; the masks make logical ones of them.
    words = (words ^ ((words >> 30) & 0x3FFFFFFFF)) * FIRST
    words = (words ^ ((words >> 27) & 0x1FFFFFFFFF)) * SECOND
    return words ^ ((words >> 31) & 0x1FFFFFFFF)


def keep_mask(keys: Tensor, counter: Tensor | int, numel: int, keep: float) -> Tensor:
    """bool [K, numel]: each true with probability `keep` (in steps of 1/65,536), by the numbers of `counter`.

    One draw of 64 bits serves four elements; `keep` is below 1 (65,535/65,536 at most).
    """
    if torch.compiler.is_compiling():
        return _opaque_mask(keys, torch.as_tensor(counter, device=keys.device), numel, keep)
    index = torch.arange(-(-numel // 4), device=keys.device)
    bits = draw(keys[:, None], index + counter * (1 << 32))
    return bits.view(torch.int16)[:, :numel] < min(round(keep * 65536), 65535) - 32768


@torch.library.custom_op("fedscale::keep_mask", mutates_args=())
def _opaque_mask(keys: Tensor, counter: Tensor, numel: int, keep: float) -> Tensor:
    """`keep_mask` as one operation for torch.compile.

    Compiled by itself (torch 2.15), its constants overflow, and the view as int16 writes out of bounds.
    """
    return keep_mask(keys, counter, numel, keep)


@_opaque_mask.register_fake
def _(keys: Tensor, counter: Tensor, numel: int, keep: float) -> Tensor:
    return keys.new_empty((len(keys), numel), dtype=torch.bool)
