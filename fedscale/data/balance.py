"""Draws in which everything comes equally often."""

from __future__ import annotations

import math

import numpy as np


def drawn_evenly(items: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """`count` of the items (at least one) in random order, each as often as the others, give or take one."""
    rounds = math.ceil(count / len(items))
    return np.concatenate([draws.permutation(items) for _ in range(rounds)])[:count]
