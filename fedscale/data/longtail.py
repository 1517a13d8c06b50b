"""The long tail: how many images each class keeps."""

from __future__ import annotations

import math

import numpy as np

from fedscale.errors import UserError


def long_tail_counts(n_max: int, imbalance_factor: float, classes: int) -> list[int]:
    """Images a class, head first: n_c = int(n_max · (1/IF)^(c/(C−1))).

    Source: the official code of CReFF (arXiv 2204.13399) and CLIP2FL (arXiv 2312.08648).
    """
    if classes == 1:
        return [n_max]
    return [int(n_max * (1 / imbalance_factor) ** (c / (classes - 1))) for c in range(classes)]


def pareto_counts(largest: int, smallest: int, images: int, classes: int, power: float = 6.0) -> list[int]:
    """Images a class, head first, `images` in all: quantiles of a Pareto distribution from `largest` to `smallest`.

    ImageNet-LT's counts are drawn from one of power 6: 1,280 to 5, 115,846 images (Liu et al., CVPR 2019, section 5).
    Its own draw is published as a list alone; quantiles at even places whose distance to the ends makes the total fit
    [D] come close: 387 / 466 / 147 many / medium / few classes for 385 / 479 / 136. Raises UserError for a total that
    no such distance gives.
    """

    def counts(margin: float) -> np.ndarray:
        places = (np.arange(classes)[::-1] + margin) / (classes - 1 + 2 * margin)
        quantiles = (1 - places) ** (-1 / power)
        share = (quantiles - quantiles[-1]) / (quantiles[0] - quantiles[-1])
        return smallest + (largest - smallest) * share + 1e-9  # so that a whole number is not rounded below itself

    low, high = 1e-6, 1e6  # the total grows with the margin
    least, most = int(counts(low).astype(int).sum()), int(counts(high).astype(int).sum())
    if not least <= images <= most:
        raise UserError(
            f"images={images}: {classes} classes of {largest} down to {smallest} images hold {least} to {most}; "
            "choose a total between them"
        )
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if counts(middle).astype(int).sum() <= images else (low, middle)
    whole = counts(low).astype(int)
    fractions = counts(low) - whole
    fractions[[0, -1]] = -1  # the ends stay as asked for
    whole[np.argsort(-fractions, kind="stable")[: images - whole.sum()]] += 1
    return sorted(whole.tolist(), reverse=True)
