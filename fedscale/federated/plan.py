"""What a group of clients does in a round, step by step, as index tensors: a function of (seed, round, clients)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedscale.federated.draws import client_keys, draw


@dataclass(frozen=True)
class GroupPlan:
    """K clients that train side by side, the ones with most steps first; S is the largest number of steps.

    Of `rows[s, k]` the first `counts[s, k]` are lane k's batch in its step s; what follows repeats a row of the lane.
    Lanes end early: in step s the first `live[s]` of them train.
    """

    clients: tuple[int, ...]
    sizes: tuple[int, ...]  # samples of each client
    steps: tuple[int, ...]  # of each lane, descending
    rows: np.ndarray  # int64 [S, K, B], rows of the store
    counts: np.ndarray  # int64 [S, K]; 0 when the lane has ended
    live: tuple[int, ...]  # [S]
    augment_keys: np.ndarray  # int64 [K]
    dropout_keys: np.ndarray  # int64 [K]

    @property
    def lanes(self) -> int:
        return len(self.clients)

    @property
    def total_steps(self) -> int:
        """Steps of all lanes together: the work that was asked for."""
        return sum(self.steps)

    def runs(self, step: int) -> list[tuple[int, int, int]]:
        """The step's work as (start, stop, batch): neighbouring lanes whose batches are equally large, nothing padded.

        Most steps are one run of all live lanes; where last batches of an epoch differ, there are a few.
        """
        found: list[tuple[int, int, int]] = []
        for lane, count in enumerate(self.counts[step, : self.live[step]].tolist()):
            if found and found[-1][2] == count:
                found[-1] = (found[-1][0], lane + 1, count)
            else:
                found.append((lane, lane + 1, count))
        return found

    def part(self, start: int, stop: int) -> GroupPlan:
        """The plan of lanes `start` to `stop` alone: the same clients doing the same."""
        if (start, stop) == (0, self.lanes):
            return self  # the very plan that was prefetched
        steps = self.steps[start:stop]
        longest = steps[0]
        counts = self.counts[:longest, start:stop]
        return GroupPlan(
            clients=self.clients[start:stop],
            sizes=self.sizes[start:stop],
            steps=steps,
            rows=self.rows[:longest, start:stop],
            counts=counts,
            live=tuple((counts > 0).sum(axis=1).tolist()),
            augment_keys=self.augment_keys[start:stop],
            dropout_keys=self.dropout_keys[start:stop],
        )

    def first_epochs(self) -> list[tuple[int, int, int]]:
        """(lane, samples, steps) of each lane's first epoch, which holds every sample once, in `rows`."""
        batch = self.rows.shape[2]
        return [(lane, size, -(-size // batch)) for lane, size in enumerate(self.sizes)]

    def first_steps(self, steps: int) -> GroupPlan:
        """The plan cut after its first `steps` steps, for trials."""
        return replace(
            self,
            steps=tuple(min(own, steps) for own in self.steps),
            rows=self.rows[:steps],
            counts=self.counts[:steps],
            live=self.live[:steps],
        )


def local_steps(num_samples: int, batch_size: int, local_epochs: int) -> int:
    """Optimiser steps of a client: its batches an epoch, the last one smaller, times the epochs."""
    return local_epochs * -(-num_samples // batch_size)


def plan_group(
    seed: int,
    round_number: int,
    clients: Sequence[int],
    samples: Sequence[np.ndarray],
    batch_size: int,
    local_epochs: int,
) -> GroupPlan:
    """The plan of `clients`, ordered by steps; `samples[k]` int64 [n_k ≥ 1] are the store's rows of clients[k].

    Each epoch goes through a client's samples in an order of its own.
    """
    ids, sizes = np.asarray(clients, dtype=np.int64), np.array([len(rows) for rows in samples])
    batches = -(-sizes // batch_size)
    steps = local_epochs * batches
    assert (sizes > 0).all() and (np.diff(steps) <= 0).all(), "clients with samples, the longest first"
    lanes, longest, most = len(ids), int(steps[0]), int(sizes.max())

    held = np.zeros((lanes, most), dtype=np.int64)
    for number, rows in enumerate(samples):
        held[number, : len(rows)] = rows
    order = _orders(client_keys(seed, "order", round_number, ids), sizes, local_epochs, most)

    step = np.arange(longest)[:, None]
    epoch, batch = np.minimum(step // batches, local_epochs - 1), step % batches  # [S, K]
    begin = batch * batch_size
    counts = np.where(step < steps, np.minimum(sizes - begin, batch_size), 0)
    slots = np.minimum(begin[:, :, None] + np.arange(batch_size), (sizes - 1)[:, None])  # [S, K, B]
    lane = np.arange(lanes)[None, :, None]
    rows = held[lane, order[lane, epoch[:, :, None], slots]]
    return GroupPlan(
        clients=tuple(int(client) for client in ids),
        sizes=tuple(sizes.tolist()),
        steps=tuple(steps.tolist()),
        rows=rows,
        counts=counts,
        live=tuple((counts > 0).sum(axis=1).tolist()),
        augment_keys=client_keys(seed, "augment", round_number, ids),
        dropout_keys=client_keys(seed, "dropout", round_number, ids),
    )


def _orders(keys: np.ndarray, sizes: np.ndarray, epochs: int, most: int) -> np.ndarray:
    """int64 [K, E, most]: for each lane and epoch a permutation of its samples, then what is beyond them."""
    counters = np.arange(epochs)[:, None] * (1 << 32) + np.arange(most)
    words = draw(keys[:, None, None], counters[None])
    beyond = np.arange(most) >= sizes[:, None]
    words[np.broadcast_to(beyond[:, None], words.shape)] = np.iinfo(np.int64).max
    return np.argsort(words, axis=-1, kind="stable")
