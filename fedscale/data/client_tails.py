"""`long_tail_client`: every client has a long tail of its own, with its own order of the classes."""

from __future__ import annotations

import numpy as np

from fedscale.data.deals import Deal

ROUNDS = 1000  # of the fit at most; 20 are enough for all but extreme factors
CLOSE = 1e-6  # relative error of the clients' sizes at which it ends


def deal_long_tail_client(
    labels: np.ndarray, num_classes: int, clients: int, imbalance_factor: float, generator: np.random.Generator
) -> Deal:
    """Client k gets in proportion to a_k · b_c · IF^(−r/(C−1)) of class c, which is the r-th of its own random order.

    C classes have images; a and b are such that every client gets the same number of images and every class is dealt
    in full (iterative proportional fitting). So on balanced data each client's classes fall off exactly as a tail of
    that factor does; on data that is long-tailed itself, each has its own tail times the common one. Fractions are
    rounded by systematic sampling, which keeps each class whole and the clients' sizes within chance of equal.

    Source of the setting: Chen et al., arXiv 2206.14988, local tails that differ between clients; of the formula: [D].
    """
    sizes = np.bincount(labels, minlength=num_classes)
    held = np.flatnonzero(sizes)
    ranks = np.stack([generator.permutation(len(held)) for _ in range(clients)])
    own = imbalance_factor ** (-ranks / max(1, len(held) - 1))
    shares = _fitted(own, np.full(clients, len(labels) / clients), sizes[held].astype(float))
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for column, c in enumerate(held):
        members = generator.permutation(np.flatnonzero(labels == c))
        order = generator.permutation(clients)
        ends = np.floor(np.cumsum(shares[order, column]) + generator.random()).astype(int)[:-1]
        for client, cut in zip(order, np.split(members, np.minimum(ends, len(members))), strict=True):
            parts[client].append(cut)
    return [np.concatenate(cuts) for cuts in parts], ""


def _fitted(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The table, its rows and columns scaled so that they sum to `rows` and `columns` (which have the same sum)."""
    for _ in range(ROUNDS):
        table = table * (columns / table.sum(0))
        found = table.sum(1)
        if np.abs(found / rows - 1).max() < CLOSE:
            break
        table = table * (rows / found)[:, None]
    return table * (columns / table.sum(0))
