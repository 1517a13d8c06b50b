"""The streams read: a webdataset pipeline for each stream's epoch, and the steps that are put together of them.

The stages are ours: the library's own tar expander hides truncated shards, and its shuffles cannot be resumed inside
an epoch (PITFALLS A 1, 9). What was shown before the first step is passed over undecoded, and a part of a shard of
which nothing is left to show is not opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count

import numpy as np
from webdataset import DataPipeline

from fedscale.rng import derive
from fedscale.server.pretrain.batch import Batch, BatchMaker, Pair
from fedscale.server.pretrain.examples import Example, Examples
from fedscale.server.pretrain.kept import Kept
from fedscale.server.pretrain.order import Order, Part

Numbered = tuple[int, Pair]  # by its number inside the stretch


class Reader:
    """Reads streams of pairs. It holds no pair itself, so that it can be sent to a worker process."""

    def __init__(
        self, examples: Examples, order: Order, maker: BatchMaker, kinds: Sequence[str], seed: int, room: int
    ) -> None:
        self._examples, self._order, self._maker = examples, order, maker
        self._kinds, self._seed, self._room = kinds, seed, room

    def steps(self, streams: Sequence[int], start: int, size: int, share: int = 1) -> Iterator[tuple[list[int], Batch]]:
        """What `streams` give to each step from `start` on, with its positions, without end.

        As one of `share` processes that divide the memory for small pools among them.
        """
        kept = Kept(self._room // share)
        sources = {stream: self._pairs(stream, start * size, kept) for stream in streams}
        for step in count(start):
            positions = self._order.positions(step, size, streams)
            pairs = [next(sources[position % self._order.num_streams]) for position in positions]
            yield positions, self._maker.batch(pairs, kept)

    def _pairs(self, stream: int, position: int, kept: Kept) -> Iterator[Pair]:
        """The stream's pairs from a position on, epoch after epoch."""
        first, given = self._order.turns(stream, position)
        for epoch in count(first):
            yield from self._epoch(epoch, stream, given if epoch == first else 0, kept)

    def _epoch(self, epoch: int, stream: int, given: int, kept: Kept) -> Iterator[Pair]:
        """One epoch of a stream, without the first `given` pairs."""
        shown = self._order.shuffled(epoch, stream)[given:]
        return iter(
            DataPipeline(
                partial(self._order.stretch, epoch, stream),
                partial(self._expanded, np.sort(shown), kept),
                partial(self._dealt, epoch),
                partial(_in_order, shown),
            )
        )

    def _expanded(self, wanted: np.ndarray, kept: Kept, parts: Iterator[Part]) -> Iterator[tuple[int, Example]]:
        """The examples whose numbers are `wanted` (rising), part after part."""
        for part in parts:
            begin, end = np.searchsorted(wanted, [part.before, part.before + part.last - part.first])
            if begin < end:
                numbers = frozenset(wanted[begin:end].tolist())
                for number, example in enumerate(self._examples_of(part, kept), start=part.before):
                    if number in numbers:
                        yield number, example

    def _examples_of(self, part: Part, kept: Kept) -> Iterator[Example]:
        """A part's examples, from memory if the whole shard finds room there."""
        shard = self._examples.entries[part.shard].shard
        if shard.file not in kept.examples:
            if not kept.takes(shard.bytes):
                return self._examples.read(part.shard, part.first, part.last)
            kept.examples[shard.file] = list(self._examples.read(part.shard))
        return iter(kept.examples[shard.file][part.first : part.last])

    def _dealt(self, epoch: int, examples: Iterator[tuple[int, Example]]) -> Iterator[Numbered]:
        """Each image with the kind of text, and the stored view, that it shows this epoch."""
        for number, example in examples:
            key = example.row.key
            kind = self._kinds[derive(self._seed, "kind", epoch, key) % len(self._kinds)]
            yield number, Pair(example, kind, derive(self._seed, "view", epoch, key) % self._maker.views)


def _in_order(numbers: np.ndarray, pairs: Iterator[Numbered]) -> Iterator[Pair]:
    """The pairs in the order of these numbers; those that come too early are held."""
    held: dict[int, Pair] = {}
    for wanted in numbers.tolist():
        while wanted not in held:
            number, pair = next(pairs)
            held[number] = pair
        yield held.pop(wanted)
    for _ in pairs:  # none is left, but the last shard is read to its end, where it may be cut
        raise AssertionError("more pairs than the stretch has")
