"""The order of pairs: exact epochs, equal steps, whatever the shards' sizes and however the streams are divided up."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.server.pretrain.order import Order, cuts, share

POOLS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)  # usable pairs of each shard


def shown(order: Order, epoch: int, stream: int) -> list[tuple[int, int]]:
    """(shard, number) of the stream's pairs in an epoch, as they are shown."""
    stretch = [(p.shard, n) for p in order.stretch(epoch, stream) for n in range(p.first, p.last)]
    return [stretch[number] for number in order.shuffled(epoch, stream)]


def sequence(order: Order, epochs: int) -> list[tuple[int, int]]:
    """What is shown at each position of the first epochs."""
    pairs = {v: iter([p for e in range(epochs) for p in shown(order, e, v)]) for v in range(order.num_streams)}
    return [next(pairs[position % order.num_streams]) for position in range(epochs * order.num_pairs)]


@settings(max_examples=80, deadline=None)
@given(POOLS, st.integers(1, 9), st.integers(1, 40), st.integers(0, 3))
def test_every_epoch_has_every_pair_exactly_once(counts, streams, buffer, seed):
    order = Order(counts, seed, streams, buffer)
    found, size = sequence(order, 3), order.num_pairs
    every = [(shard, number) for shard, count in enumerate(counts) for number in range(count)]
    for epoch in range(3):
        assert sorted(found[epoch * size : (epoch + 1) * size]) == every


@settings(max_examples=80, deadline=None)
@given(POOLS, st.integers(1, 9), st.integers(1, 5))
def test_stretches_of_an_epoch_differ_by_one_pair_at_most_and_their_parts_lie_end_to_end(counts, streams, epoch):
    order = Order(counts, 0, streams, 5)
    sizes = []
    for stream in range(streams):
        parts = list(order.stretch(epoch, stream))
        lengths = [part.last - part.first for part in parts]
        assert [part.before for part in parts] == [sum(lengths[:n]) for n in range(len(parts))]
        sizes.append(sum(lengths))
        assert len(order.shuffled(epoch, stream)) == sum(lengths)
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == sum(counts)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 4), st.integers(0, 50), st.data())
def test_ranks_and_their_workers_divide_every_step_and_each_has_some_of_every_micro_batch(
    streams, more, accumulation, step, data
):
    world = data.draw(st.integers(1, streams))
    workers = data.draw(st.integers(1, streams // world))
    size = streams * accumulation + more
    order = Order([7, 100], 0, streams, 5)
    ends = cuts(step, size, accumulation)
    assert len(ends) == accumulation and ends[-1] == (step + 1) * size
    whole: list[int] = []
    for rank in range(world):
        own = order.positions(step, size, share(range(streams), rank, world))
        parts = [
            order.positions(step, size, share(share(range(streams), rank, world), w, workers)) for w in range(workers)
        ]
        assert sorted(chain(*parts)) == own and all(parts)
        edges = [0, *np.searchsorted(own, ends)]
        assert all(np.diff(edges) > 0), "a rank without images would have nothing to do backward"
        whole += own
    assert sorted(whole) == list(range(step * size, (step + 1) * size))


@settings(max_examples=80, deadline=None)
@given(POOLS, st.integers(1, 9), st.integers(0, 200))
def test_a_stream_stands_where_it_stood_when_it_is_asked_at_a_position(counts, streams, position):
    order = Order(counts, 3, streams, 4)
    epochs = position // order.num_pairs + 2
    found = sequence(order, epochs)
    for stream in range(streams):
        epoch, given_before = order.turns(stream, position)
        rest = [pair for at, pair in enumerate(found) if at >= position and at % streams == stream]
        left = shown(order, epoch, stream)[given_before:]
        assert rest[: len(left)] == left


def test_orders_differ_by_epoch_seed_and_stream():
    first, other = Order([500], 1, 2, 1000), Order([500], 2, 2, 1000)
    orders = [first.shuffled(0, 0), first.shuffled(0, 1), first.shuffled(1, 0), other.shuffled(0, 0)]
    assert len({tuple(order) for order in orders}) == 4
    shards = [
        [part.shard for part in Order([1] * 50, seed, 1, 5).stretch(epoch, 0)]
        for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert len({tuple(order) for order in shards}) == 3 and sorted(shards[0]) == list(range(50))


@pytest.mark.parametrize("buffer", [1, 7, 256])
def test_the_shuffle_holds_fewer_pairs_than_its_buffer_and_mixes_them(buffer):
    order = Order([5000], 0, 1, buffer).shuffled(0, 0)
    read = np.maximum.accumulate(order)
    assert (read - np.arange(5000)).max() < buffer, "read and not yet shown"
    still_unread = np.minimum.accumulate(order[::-1])[::-1]  # the earliest pair that is yet to come
    assert (read - still_unread).max() < buffer, "what a resumed run must read again"
    if buffer > 1:
        assert np.abs(order - np.arange(5000)).mean() > buffer / 8


def test_a_large_pool_costs_little_to_order():
    order = Order([10_000] * 1200, 0, 8, 256)  # ImageNet-21k's size
    assert sum(part.last - part.first for part in order.stretch(3, 5)) == 1_500_000
    assert len(list(order.stretch(3, 5))) <= 152, "a stretch touches its own shards and two that it shares"
