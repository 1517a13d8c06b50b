"""A partition in numbers: sizes, classes, how far the clients' class distributions are from the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedscale.data.partition import Partition
from fedscale.rng import numpy_generator


@dataclass(frozen=True)
class PartitionFacts:
    """`counts[client, class]` images, int64; `groups` holds the classes that are many, medium and few."""

    kind: str
    note: str
    seed: int
    counts: np.ndarray
    class_names: tuple[str, ...]
    groups: dict[str, list[int]]

    @property
    def sizes(self) -> np.ndarray:
        """Images a client, int64 [clients]."""
        return self.counts.sum(1)

    @property
    def classes(self) -> np.ndarray:
        """Classes of which a client has an image, int64 [clients]."""
        return (self.counts > 0).sum(1)

    @property
    def without_tail(self) -> int | None:
        """Clients without any image of a `few` class; None where no class counts as few."""
        few = self.groups["few"]
        return int((self.counts[:, few].sum(1) == 0).sum()) if few else None

    def to_dict(self) -> dict[str, Any]:
        """For programs: everything but the table, which the export of the partition holds image by image."""
        return {
            "kind": self.kind,
            "seed": self.seed,
            "clients": len(self.counts),
            "images": int(self.counts.sum()),
            "classes": len(self.class_names),
            "client_sizes": _spread(self.sizes),
            "classes_a_client": _spread(self.classes),
            "distance": round(distance(self.counts), 4),
            "distance_by_chance": round(distance(by_chance(self.counts, self.seed)), 4),
            "tail_classes": len(self.groups["few"]),
            "clients_without_tail": self.without_tail,
            "note": self.note,
        }


def facts_of(
    partition: Partition, labels: np.ndarray, class_names: Sequence[str], groups: dict[str, list[int]], seed: int
) -> PartitionFacts:
    """The facts of a partition of `labels` (int [N]); `groups` as `evaluation.class_groups` gives them."""
    counts = np.stack([np.bincount(labels[rows], minlength=len(class_names)) for rows in partition.clients])
    return PartitionFacts(partition.kind, partition.note, seed, counts, tuple(class_names), groups)


def distance(counts: np.ndarray) -> float:
    """Mean over the clients that have images of the total variation, 0 to 1, between their classes and all clients'."""
    held = counts[counts.sum(1) > 0]
    whole = held.sum(0) / held.sum()
    return float((np.abs(held / held.sum(1, keepdims=True) - whole).sum(1) / 2).mean())


def by_chance(counts: np.ndarray, seed: int) -> np.ndarray:
    """The table of a random deal to clients of the same sizes: small clients differ from the whole even so."""
    labels = np.repeat(np.arange(counts.shape[1]), counts.sum(0))
    shuffled = numpy_generator(seed, "partition", "by chance").permutation(labels)
    parts = np.split(shuffled, np.cumsum(counts.sum(1))[:-1])
    return np.stack([np.bincount(part, minlength=counts.shape[1]) for part in parts])


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
