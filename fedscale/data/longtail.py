"""The long tail: how many images each class keeps."""

from __future__ import annotations


def long_tail_counts(n_max: int, imbalance_factor: float, classes: int) -> list[int]:
    """Images a class, head first: n_c = int(n_max · (1/IF)^(c/(C−1))).

    Source: the official code of CReFF (arXiv 2204.13399) and CLIP2FL (arXiv 2312.08648).
    """
    if classes == 1:
        return [n_max]
    return [int(n_max * (1 / imbalance_factor) ** (c / (classes - 1))) for c in range(classes)]
