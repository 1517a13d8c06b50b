"""Which pair comes when: pretraining's order as a function of seed, epoch and step, whoever reads it.

All pairs of all epochs have positions 0, 1, 2, …: epoch e is positions e·N to (e + 1)·N of N pairs, and position p
belongs to stream p mod V. So any V positions in a row hold one pair of every stream, and a step, which is
`pretrain.batch_size` positions, needs equally much of each stream, whatever the shards' sizes. An epoch's shards, in an
order of (seed, epoch), are laid end to end and cut into V stretches, one a stream, each as long as the stream has
positions in that epoch (they differ by one pair at most): every pair comes exactly once an epoch. A shard at a cut is
read by both neighbours, each its own part of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedscale.rng import numpy_generator


@dataclass(frozen=True)
class Part:
    """Pairs `first` to before `last` of one shard, of which `before` pairs of the stretch come earlier."""

    shard: int
    first: int
    last: int
    before: int


class Order:
    """The order of pairs in shards that hold `counts` of them, over `streams`.

    Each is shuffled through `buffer` pairs of its own: how well it is mixed does not depend on how many there are.
    """

    def __init__(self, counts: Sequence[int], seed: int, streams: int, buffer: int) -> None:
        self._counts = np.asarray(counts, dtype=np.int64)
        self.num_pairs: int = int(self._counts.sum())
        self.num_streams, self._seed, self._buffer = streams, seed, buffer

    def positions(self, step: int, size: int, streams: Collection[int]) -> list[int]:
        """Those of a step's `size` positions that belong to `streams`, rising."""
        return [p for p in range(step * size, (step + 1) * size) if p % self.num_streams in streams]

    def turns(self, stream: int, position: int) -> tuple[int, int]:
        """The epoch in which `position` lies, and how many pairs of it the stream has given before."""
        epoch = position // self.num_pairs
        return epoch, self._given(stream, position) - self._given(stream, epoch * self.num_pairs)

    def stretch(self, epoch: int, stream: int) -> Iterator[Part]:
        """The parts of shards that the stream reads in an epoch, in this order."""
        sizes = [self._size(epoch, each) for each in range(stream + 1)]
        begin, end = sum(sizes[:-1]), sum(sizes)
        shards = numpy_generator(self._seed, "pretrain order", epoch).permutation(len(self._counts))
        ends = np.cumsum(self._counts[shards])
        # The shards that end behind the stretch's begin, up to the one that holds its last pair.
        for place in range(int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(ends, end, "left")) + 1):
            count = int(self._counts[shards[place]])
            start = int(ends[place]) - count
            first, last = max(0, begin - start), min(count, end - start)
            if first < last:
                yield Part(int(shards[place]), first, last, start + first - begin)

    def shuffled(self, epoch: int, stream: int) -> np.ndarray:
        """The order in which the pairs of a stretch are shown: their numbers inside it, int64.

        Each is late by a random part of `buffer` pairs. So fewer than `buffer` are held when they are read in turn,
        and what is `buffer` pairs behind the last one shown need not be read again. A stretch that fits in there
        is permuted as a whole.
        """
        size = self._size(epoch, stream)
        draws = numpy_generator(self._seed, "pretrain shuffle", epoch, stream)
        if size <= self._buffer:
            return draws.permutation(size)
        return np.argsort(np.arange(size) + self._buffer * draws.random(size), kind="stable")

    def _size(self, epoch: int, stream: int) -> int:
        """How many positions of an epoch are the stream's."""
        return self._given(stream, (epoch + 1) * self.num_pairs) - self._given(stream, epoch * self.num_pairs)

    def _given(self, stream: int, position: int) -> int:
        """How many pairs the stream gives at positions before this one."""
        return (position + self.num_streams - 1 - stream) // self.num_streams


def share(streams: Sequence[int], which: int, of: int) -> Sequence[int]:
    """The streams of one rank, or of one of its loader workers: every `of`-th."""
    return streams[which::of]


def cuts(step: int, size: int, accumulation: int) -> list[int]:
    """The positions at which a step's micro batches end; the last is the step's own end."""
    return [step * size + number * size // accumulation for number in range(1, accumulation + 1)]
