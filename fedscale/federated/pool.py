"""Images of the open pool that the server trains on between rounds: any, or evenly by the crawl's keywords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedscale.data.keywords import KeywordClasses
from fedscale.data.store import ClientStore
from fedscale.errors import UserError
from fedscale.rng import numpy_generator


@dataclass(frozen=True)
class Pool:
    """The server's images for a whole run, on its device."""

    images: Tensor  # float [N, C, H, W], normalised
    labels: Tensor  # int64 [N]: the class that the keyword names, or -1


def pool_rows(store: ClientStore, class_names: Sequence[str], count: int, balanced: bool, seed: int) -> np.ndarray:
    """Rows of `count` images of the pool, drawn once a run; `balanced` draws as many of each class.

    Raises UserError where the pool has fewer images than one a class, or none of a class that should be balanced.
    """
    draws = numpy_generator(seed, "server pool")
    if not balanced:
        if not len(store.keys):
            raise UserError("federate: the method trains at the server, and the open pool is empty; open_pool.enabled")
        return np.sort(draws.permutation(len(store.keys))[:count])
    labels, each = keyword_labels(store, class_names), count // len(class_names)
    rows = []
    for label, name in enumerate(class_names):
        found = np.flatnonzero(labels == label)
        if not len(found):
            raise UserError(
                f"federate: the method needs images of every class at the server, and no image of the open pool has "
                f"the keyword {name}; raise open_pool.reserve"
            )
        rows.append(draws.permutation(found)[:each])
    return np.sort(np.concatenate(rows))


def keyword_labels(store: ClientStore, class_names: Sequence[str]) -> np.ndarray:
    """The class that each image's keyword names, int64 [N]; -1 where it names none."""
    class_of = KeywordClasses(class_names)
    labels = (class_of(word) for word in store.keywords)
    return np.array([-1 if label is None else label for label in labels], dtype=np.int64)
