"""Ways to deal samples to clients, each a pure function of (labels, settings, generator). See also `client_tails`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fedscale.errors import UserError

Deal = tuple[list[np.ndarray], str]  # each client's row numbers; what was repaired, or ""
GROUP = 10  # workers that `dirichlet_equal` draws for at once [C]


def deal_iid(count: int, clients: int, generator: np.random.Generator) -> Deal:
    """Shuffled and cut into equal parts (sizes differ by one at most)."""
    return np.array_split(generator.permutation(count), clients), ""


def deal_dirichlet(
    labels: np.ndarray,
    num_classes: int,
    clients: int,
    alpha: float,
    min_samples: int,
    tries: int,
    generator: np.random.Generator,
) -> Deal:
    """Each class cut by a Dirichlet(α) draw over the clients, drawn anew until every client has `min_samples`.

    Source: Hsu et al., arXiv 1909.06335, and Li et al., arXiv 2102.02079 (the minimum).
    """
    by_class = [generator.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]

    def draw() -> list[np.ndarray]:
        cuts = [_cut(members, _draw(alpha, clients, generator)) for members in by_class]
        return [np.concatenate([cut[k] for cut in cuts]) for k in range(clients)]

    return _drawn(draw, min_samples, tries, f"each client {min_samples} samples", generator)


def deal_quantity(
    count: int, clients: int, alpha: float, min_samples: int, tries: int, generator: np.random.Generator
) -> Deal:
    """Shuffled and cut by one Dirichlet(α) draw over the clients: sizes differ, class distributions but by chance.

    Drawn anew until every client has `min_samples`. Source: Li et al., arXiv 2102.02079, quantity skew.
    """
    shuffled = generator.permutation(count)
    wanted = f"each client {min_samples} samples"
    return _drawn(lambda: _cut(shuffled, _draw(alpha, clients, generator)), min_samples, tries, wanted, generator)


def deal_dirichlet_equal(
    labels: np.ndarray, num_classes: int, clients: int, alpha: float, tries: int, generator: np.random.Generator
) -> Deal:
    """The published protocol: Dirichlet drawn in groups of ten workers, the lists joined and cut into equal parts.

    All rows are shuffled and cut into a piece a group. Within a piece each class is cut by Dirichlet(α) over the
    group's workers, of whom those that hold an equal share already get nothing; this is drawn anew until the smallest
    has half an equal share. Source: official code of CReFF (Dataset/sample_dirichlet.py), which CLIP2FL shares; there
    the drawing is unbounded.
    """
    shuffled = generator.permutation(len(labels))
    groups = math.ceil(clients / GROUP)
    piece_size = int(GROUP / clients * len(labels))
    dealt: list[np.ndarray] = []
    notes = []
    for group in range(groups):
        last = group == groups - 1
        piece = shuffled[group * piece_size : None if last else (group + 1) * piece_size]
        workers = clients - GROUP * (groups - 1) if last else GROUP
        parts, note = _deal_group(piece, labels[piece], num_classes, workers, alpha, tries, generator)
        dealt += parts
        if note:
            notes.append(f"group {group}: {note}")
    return np.array_split(np.concatenate(dealt), clients), "; ".join(notes)


def _deal_group(
    piece: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    workers: int,
    alpha: float,
    tries: int,
    generator: np.random.Generator,
) -> Deal:
    share = len(piece) / workers
    by_class = [piece[labels == c] for c in range(num_classes)]

    def draw() -> list[np.ndarray]:
        lists: list[list[np.ndarray]] = [[] for _ in range(workers)]
        sizes = np.zeros(workers, dtype=np.int64)
        for members in by_class:
            proportions = _draw(alpha, workers, generator) * (sizes < share)
            if proportions.sum() == 0:  # a sharp draw that falls on full workers alone: the rest shares alike
                proportions = (sizes < share).astype(float) if (sizes < share).any() else np.ones(workers)
            for worker, cut in enumerate(_cut(members, proportions / proportions.sum())):
                lists[worker].append(cut)
                sizes[worker] += len(cut)
        return [np.concatenate(held) for held in lists]

    half = int(0.5 * share)
    return _drawn(draw, half, tries, f"each worker half an equal share ({half})", generator)


def deal_pathological(
    labels: np.ndarray, num_classes: int, clients: int, classes_per_client: int, generator: np.random.Generator
) -> Deal:
    """Each client holds exactly `classes_per_client` classes: every class is cut into label shards, which are dealt.

    A class gets shards in proportion to its size, at least one and at most one a client. Raises UserError where not
    every class finds a client. Source: McMahan et al., arXiv 1602.05629 (two shards a client), made exact in classes.
    """
    sizes = np.bincount(labels, minlength=num_classes)
    slots = clients * classes_per_client
    present = int((sizes > 0).sum())
    if classes_per_client > present:
        raise UserError(
            f"data.partition.classes_per_client={classes_per_client}: more than the {present} classes of the data; "
            "lower it"
        )
    if slots < present:
        raise UserError(
            f"data.partition.clients={clients}: with {classes_per_client} classes each they hold {slots} of {present}; "
            "raise data.partition.clients or data.partition.classes_per_client"
        )
    holders = _shards_by_class(sizes, slots, clients)
    free = np.full(clients, classes_per_client)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for c in np.argsort(-holders, kind="stable"):
        # Largest class first, to the clients with most places left: always works out (Gale and Ryser).
        order = np.lexsort((generator.permutation(clients), -free))[: holders[c]]
        shards = np.array_split(generator.permutation(np.flatnonzero(labels == c)), max(1, holders[c]))
        for client, shard in zip(order, shards, strict=False):
            parts[client].append(shard)
            free[client] -= 1
    assert (free == 0).all(), "every client has all its classes"
    return [np.concatenate(held) for held in parts], ""


def _drawn(
    draw: Callable[[], list[np.ndarray]], minimum: int, tries: int, wanted: str, generator: np.random.Generator
) -> Deal:
    """The first of `tries` draws that gives everyone `minimum` samples, or else the best of them, repaired."""
    best: list[np.ndarray] = []
    for _ in range(tries):
        parts = draw()
        if smallest(parts) >= minimum:
            return parts, ""
        if not best or smallest(parts) > smallest(best):
            best = parts
    return repair(best, minimum, f"no draw of {tries} gave {wanted}", generator)


def repair(parts: list[np.ndarray], minimum: int, reason: str, generator: np.random.Generator) -> Deal:
    """Move rows from the largest client to the smallest until each has `minimum`; the note says why and how many.

    Needs len(parts) · minimum rows in all.
    """
    parts = list(parts)
    moved, helped = 0, set()
    while smallest(parts) < minimum:
        sizes = [len(part) for part in parts]
        poor, rich = int(np.argmin(sizes)), int(np.argmax(sizes))
        count = min(minimum - sizes[poor], max(1, (sizes[rich] - sizes[poor]) // 2))
        order = generator.permutation(sizes[rich])
        parts[poor] = np.concatenate([parts[poor], parts[rich][order[:count]]])
        parts[rich] = parts[rich][np.sort(order[count:])]
        moved += count
        helped.add(poor)
    return parts, (
        f"{reason}, so {moved} samples were moved from the largest clients to {len(helped)} small ones, "
        f"until each had {minimum}"
    )


def smallest(parts: list[np.ndarray]) -> int:
    """The number of samples of the poorest client."""
    return min(len(part) for part in parts)


def _draw(alpha: float, count: int, generator: np.random.Generator) -> np.ndarray:
    """Dirichlet(α) over `count`. Where α is so small that the draw underflows, its limit: all on one."""
    proportions = generator.dirichlet(np.full(count, alpha))
    if not np.isfinite(proportions).all() or proportions.sum() == 0:
        proportions = np.zeros(count)
        proportions[generator.integers(count)] = 1.0
    return proportions


def _cut(members: np.ndarray, proportions: np.ndarray) -> list[np.ndarray]:
    """`members` cut at the cumulative proportions, rounded down: the last takes what is left, as in the papers' codes.

    So where a class has fewer samples than there are clients, the last client is sure of one.
    """
    return np.split(members, (np.cumsum(proportions) * len(members)).astype(int)[:-1])


def _shards_by_class(sizes: np.ndarray, slots: int, clients: int) -> np.ndarray:
    """Label shards a class: in proportion to its size, 1 to min(clients, size) each, `slots` in all."""
    most = np.minimum(sizes, clients)
    if most.sum() < slots:
        raise UserError(
            f"data.partition.classes_per_client: {slots} label shards are needed, the classes can be cut into "
            f"{most.sum()}; lower data.partition.clients or data.partition.classes_per_client"
        )
    shards = (sizes > 0).astype(np.int64)
    while shards.sum() < slots:
        # The class whose shards are largest is cut once more; ties go to the first class.
        room = shards < most
        shards[np.argmax(np.where(room, sizes / np.maximum(shards, 1), -1.0))] += 1
    return shards
