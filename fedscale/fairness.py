"""How evenly a model serves the clients: its accuracy on each client's own distribution of classes.

A client's accuracy is that of the evaluated split, re-weighted by the classes of its training images: the sum over
the classes of its share of the class times the model's accuracy on the class. This needs of a client its class counts
alone; it does not see that a client's images of a class may differ from another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fairness:
    """The spread of the accuracy (percent) over the clients that hold images, each counting once."""

    clients: int
    mean: float
    variance: float  # over the clients, in squared percent (q-FFL, arXiv 1905.10497, reports the same)
    worst_decile: float  # the mean of the tenth of the clients that is served worst, of one at least


def client_accuracies(per_class: Sequence[float], labels: np.ndarray, clients: Sequence[np.ndarray]) -> np.ndarray:
    """The accuracy (percent) of each client that holds images; `clients` are rows of `labels` [N], the training set's.

    The mean of the class accuracies over a client's images is their sum weighted by its class shares.
    """
    expected = np.asarray(per_class, float)[np.asarray(labels)]
    return np.array([expected[rows].mean() for rows in clients if len(rows)])


def fairness(accuracies: np.ndarray) -> Fairness:
    """The spread of the clients' accuracies, of which there is one at least."""
    worst = np.sort(accuracies)[: -(-len(accuracies) // 10)]
    return Fairness(len(accuracies), float(accuracies.mean()), float(accuracies.var()), float(worst.mean()))
