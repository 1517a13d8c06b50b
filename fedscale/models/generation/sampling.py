"""Tokens whose draws are a function of (seed, step, token id) alone: the same in every batch and on every device.

A draw is the argmax of logits / temperature + Gumbel noise, which has the distribution of softmax(logits /
temperature) (arXiv 1411.0030). The noise is hashed on the device that the logits are on: nothing is drawn in sequence,
kept, or copied from the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF  # of 32 bits, held in int64, since torch has no unsigned arithmetic on every device
GOLDEN = 0x9E3779B9


def gumbel(seeds: Tensor, steps: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 [B, vocabulary], of seeds (63 bits) and steps, both int64 [B]."""
    first = _mix((_mix(seeds & WORD) + steps * GOLDEN) & WORD)
    second = _mix(_mix((seeds >> 32) ^ GOLDEN) ^ first)
    tokens = torch.arange(vocabulary, device=seeds.device)
    bits = _mix((_mix(first[:, None] ^ tokens) + second[:, None]) & WORD)  # a sum: two mixed words may cancel under ^
    uniform = (bits.float() + 0.5) * 2.0**-32  # finest near 0, which becomes the noise's upper tail, where winners are
    return -torch.log(-torch.log1p(-uniform))


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every input bit moves every output bit (lowbias32 of C. Wellons)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


class Sampler:
    """How each row of a batch draws: by its temperature (0 = greedy) and its seed."""

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        rows = [row for row, temperature in enumerate(temperatures) if temperature > 0]
        self._any = bool(rows)
        self._rows = torch.tensor(rows, dtype=torch.long, device=device)
        self._temperatures = torch.tensor([temperatures[row] for row in rows], device=device)[:, None]
        self._seeds = torch.tensor([seeds[row] % 2**63 for row in rows], dtype=torch.long, device=device)

    def scores(self, logits: Tensor, steps: Tensor) -> Tensor:
        """Scores [B, V] whose argmax is each row's token number steps [B] (int64), of float32 logits [B, V]."""
        if not self._any:
            return logits
        noise = gumbel(self._seeds, steps[self._rows], logits.shape[1])
        return logits.index_copy(0, self._rows, logits[self._rows] / self._temperatures + noise)

    def __call__(self, logits: Tensor, steps: Tensor) -> Tensor:
        """The tokens, int64 [B]."""
        return self.scores(logits, steps).argmax(1)
