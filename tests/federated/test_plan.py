"""The plan of a group says who trains on which samples in which step, and depends on nothing but the client."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.federated.cohort import by_steps
from fedscale.federated.plan import GroupPlan, local_steps, plan_group


def make(
    sizes: dict[int, int], batch_size: int = 4, epochs: int = 2, seed: int = 1, round_number: int = 3
) -> tuple[GroupPlan, dict[int, np.ndarray]]:
    """The plan of clients with so many samples; client c has the rows 1000 · c and the following."""
    clients = by_steps(list(sizes), [local_steps(n, batch_size, epochs) for n in sizes.values()])
    samples = {client: 1000 * client + np.arange(sizes[client]) for client in clients}
    return plan_group(seed, round_number, clients, [samples[c] for c in clients], batch_size, epochs), samples


def batches(plan: GroupPlan, lane: int) -> list[list[int]]:
    return [plan.rows[step, lane, : plan.counts[step, lane]].tolist() for step in range(plan.steps[lane])]


ragged = st.dictionaries(st.integers(0, 10**6), st.integers(1, 23), min_size=1, max_size=7)


@settings(max_examples=150, deadline=None)
@given(sizes=ragged, batch_size=st.integers(1, 9), epochs=st.integers(1, 3))
def test_every_epoch_of_a_client_is_a_permutation_of_its_samples(
    sizes: dict[int, int], batch_size: int, epochs: int
) -> None:
    plan, samples = make(sizes, batch_size, epochs)
    for lane, client in enumerate(plan.clients):
        each = -(-sizes[client] // batch_size)
        steps = batches(plan, lane)
        assert len(steps) == epochs * each
        for epoch in range(epochs):
            taken = itertools.chain.from_iterable(steps[epoch * each : (epoch + 1) * each])
            assert sorted(taken) == samples[client].tolist()


@settings(max_examples=150, deadline=None)
@given(sizes=ragged, batch_size=st.integers(1, 9), epochs=st.integers(1, 3))
def test_steps_counts_live_lanes_and_runs_are_those_of_the_sizes(
    sizes: dict[int, int], batch_size: int, epochs: int
) -> None:
    plan, samples = make(sizes, batch_size, epochs)
    assert sorted(plan.clients) == sorted(sizes)
    assert plan.sizes == tuple(sizes[client] for client in plan.clients)
    assert plan.steps == tuple(local_steps(n, batch_size, epochs) for n in plan.sizes)
    assert list(plan.steps) == sorted(plan.steps, reverse=True)
    assert plan.total_steps == sum(plan.steps)
    assert plan.rows.shape == (plan.steps[0], plan.lanes, batch_size)
    assert plan.counts.shape == (plan.steps[0], plan.lanes)
    for step in range(plan.steps[0]):
        wanted = []
        for n, steps in zip(plan.sizes, plan.steps, strict=True):
            place = step % -(-n // batch_size)
            wanted.append(min(batch_size, n - place * batch_size) if step < steps else 0)
        assert plan.counts[step].tolist() == wanted
        assert plan.live[step] == sum(n > 0 for n in wanted)
        runs = plan.runs(step)
        assert [n for start, stop, n in runs for _ in range(start, stop)] == wanted[: plan.live[step]]
        assert [stop for _, stop, _ in runs[:-1]] == [start for start, _, _ in runs[1:]]
        assert all(a[2] != b[2] for a, b in itertools.pairwise(runs)), "neighbours that could be one run"
    for lane, client in enumerate(plan.clients):  # what follows a batch, or a client's end, is still a row of the lane
        assert np.isin(plan.rows[:, lane], samples[client]).all()


@settings(max_examples=60, deadline=None)
@given(sizes=ragged, data=st.data())
def test_a_part_of_a_plan_is_the_same_clients_doing_the_same(sizes: dict[int, int], data: st.DataObject) -> None:
    plan, _ = make(sizes)
    start = data.draw(st.integers(0, plan.lanes - 1))
    stop = data.draw(st.integers(start + 1, plan.lanes))
    part = plan.part(start, stop)
    assert (part.clients, part.sizes, part.steps) == (
        plan.clients[start:stop],
        plan.sizes[start:stop],
        plan.steps[start:stop],
    )
    assert [batches(part, lane) for lane in range(part.lanes)] == [batches(plan, lane) for lane in range(start, stop)]
    assert part.live == tuple(sum(s > step for s in part.steps) for step in range(part.steps[0]))
    assert len(part.rows) == len(part.counts) == part.steps[0]
    assert np.array_equal(part.augment_keys, plan.augment_keys[start:stop])
    assert np.array_equal(part.dropout_keys, plan.dropout_keys[start:stop])
    again = part.part(0, part.lanes)
    assert [batches(again, lane) for lane in range(again.lanes)] == [batches(part, lane) for lane in range(part.lanes)]


def test_the_batches_of_a_client_do_not_depend_on_who_else_is_in_the_group() -> None:
    sizes = {5: 13, 2: 9, 9: 17, 4: 3}
    plan, _ = make(sizes)
    for lane, client in enumerate(plan.clients):
        alone, _ = make({client: sizes[client]})
        other, _ = make({client: sizes[client], 77: 40, 78: 1})
        place = other.clients.index(client)
        assert batches(alone, 0) == batches(other, place) == batches(plan, lane)
        assert alone.dropout_keys[0] == other.dropout_keys[place] == plan.dropout_keys[lane]
        assert alone.augment_keys[0] == other.augment_keys[place] == plan.augment_keys[lane]


def test_orders_differ_between_epochs_rounds_seeds_and_clients() -> None:
    def order(client: int, epoch: int, **where: int) -> tuple[int, ...]:
        plan, _ = make({client: 20}, batch_size=20, epochs=3, **where)
        return tuple(row - 1000 * client for row in batches(plan, 0)[epoch])

    seen = [
        order(client, epoch, seed=seed, round_number=round_number)
        for client in (0, 1)
        for epoch in range(3)
        for seed in (1, 2)
        for round_number in (1, 2)
    ]
    assert len(set(seen)) == len(seen)
    assert order(0, 0) == order(0, 0)


def test_the_orders_of_three_samples_are_equally_frequent() -> None:
    plan, _ = make({client: 3 for client in range(3000)}, batch_size=3, epochs=2)
    orders, counts = np.unique(plan.rows.reshape(-1, 3) % 1000, axis=0, return_counts=True)
    assert len(orders) == 6
    assert (np.abs(counts - 1000) < 5 * (6000 / 6 * 5 / 6) ** 0.5).all()  # five standard deviations


def test_clients_out_of_order_or_without_samples_are_a_programming_error() -> None:
    rows = [np.arange(4), np.arange(9)]
    with pytest.raises(AssertionError):
        plan_group(0, 1, [0, 1], rows, 4, 1)
    with pytest.raises(AssertionError):
        plan_group(0, 1, [0, 1], [np.arange(9), np.arange(0)], 4, 1)
