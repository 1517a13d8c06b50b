"""The cohort and its groups are functions of (seed, round); only where a group trains depends on the ranks."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.federated.cohort import CostModel, by_steps, even_groups_of, groups_of, placement, sample_cohort


def test_equal_rounds_give_equal_cohorts_of_different_clients() -> None:
    assert sample_cohort(1, 5, 20, 8) == sample_cohort(1, 5, 20, 8)
    assert len({tuple(sample_cohort(1, r, 20, 8)) for r in range(10)}) == 10
    assert all(len(set(sample_cohort(1, r, 20, 8))) == 8 for r in range(10))


def test_every_client_is_drawn_equally_often() -> None:
    drawn = Counter(client for r in range(2000) for client in sample_cohort(3, r, 20, 8))
    assert sorted(drawn) == list(range(20))
    assert all(abs(n - 800) < 5 * (2000 * 0.4 * 0.6) ** 0.5 for n in drawn.values())  # five standard deviations


def test_the_clients_with_most_steps_come_first_and_ties_go_by_number() -> None:
    assert by_steps([0, 2, 3, 5], [10, 30, 10, 50]) == [5, 2, 0, 3]
    assert by_steps([9, 1, 4], [2, 2, 2]) == [1, 4, 9]


@given(clients=st.lists(st.integers(), unique=True, max_size=30), lanes=st.integers(1, 12))
def test_groups_are_the_ordered_cohort_cut_at_every_so_many_clients(clients: list[int], lanes: int) -> None:
    groups = groups_of(clients, lanes)
    assert list(itertools.chain.from_iterable(groups)) == clients
    assert all(len(group) == lanes for group in groups[:-1])
    assert all(1 <= len(group) <= lanes for group in groups)


@given(steps=st.lists(st.integers(1, 50), max_size=30), lanes=st.integers(1, 12))
def test_even_groups_have_no_more_steps_than_the_largest_client_and_are_full_otherwise(
    steps: list[int], lanes: int
) -> None:
    ordered = sorted(steps, reverse=True)
    groups = even_groups_of(list(range(len(ordered))), ordered, lanes)
    assert list(itertools.chain.from_iterable(groups)) == list(range(len(ordered)))
    loads = [sum(ordered[client] for client in group) for group in groups]
    assert all(len(group) <= lanes and load <= ordered[0] for group, load in zip(groups, loads, strict=True))
    for group, load, following in zip(groups, loads, groups[1:], strict=False):
        assert len(group) == lanes or load + ordered[following[0]] > ordered[0]


costs_of_groups = st.lists(st.floats(0.01, 100, allow_nan=False), max_size=40)


@given(costs=costs_of_groups, ranks=st.integers(1, 9))
def test_every_group_is_placed_exactly_once(costs: list[float], ranks: int) -> None:
    placed = placement(costs, ranks)
    assert len(placed) == ranks
    assert sorted(itertools.chain.from_iterable(placed)) == list(range(len(costs)))
    assert placed == placement(costs, ranks)


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.integers(1, 30), min_size=1, max_size=8), ranks=st.integers(1, 4))
def test_no_rank_has_more_to_do_than_four_thirds_of_the_optimum(costs: list[int], ranks: int) -> None:
    reachable = {(0,) * ranks}  # the loads of every way to place the groups so far
    for cost in costs:
        reachable = {
            tuple(sorted((*loads[:r], loads[r] + cost, *loads[r + 1 :]))) for loads in reachable for r in range(ranks)
        }
    best = min(max(loads) for loads in reachable)
    load = max(sum(costs[group] for group in groups) for groups in placement(costs, ranks))
    assert load <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9  # Graham 1969: the bound of "largest first"


def test_the_largest_group_of_each_rank_comes_first() -> None:
    costs = [1.0, 8.0, 3.0, 5.0, 2.0]
    placed = placement(costs, 2)
    assert placed == [[1, 4], [3, 2, 0]]
    assert placement([2.0, 2.0, 2.0, 2.0], 2) == [[0, 2], [1, 3]]


def test_the_cost_model_recovers_the_fixed_and_the_proportional_seconds() -> None:
    draws, model = np.random.default_rng(0), CostModel()
    steps = draws.integers(10, 400, size=60).astype(float)
    model.observe(steps, 0.5 + 0.02 * steps)
    assert (model.fixed, model.per_step) == pytest.approx((0.5, 0.02))
    noisy = CostModel()
    for part in np.split(steps, 6):  # round after round
        noisy.observe(part, 0.5 + 0.02 * part + draws.normal(0, 0.05, len(part)))
    assert (noisy.fixed, noisy.per_step) == pytest.approx((0.5, 0.02), rel=0.15)
    assert noisy.cost(100) == pytest.approx(2.5, rel=0.05)


def test_the_cost_model_forgets_what_is_long_ago() -> None:
    model, steps = CostModel(kept=20), np.arange(10, 30.0)
    model.observe(steps, 9 + 7 * steps)
    model.observe(steps, 1 + 2 * steps)
    assert (model.fixed, model.per_step) == pytest.approx((1, 2))


def test_equal_steps_and_silly_times_still_order_groups_by_steps() -> None:
    untouched, equal, falling = CostModel(), CostModel(), CostModel()
    assert untouched.cost(7) == 7
    equal.observe([30.0, 30.0, 30.0], [3.0, 3.2, 2.8])
    assert equal.cost(30) == pytest.approx(3.0)
    falling.observe([10.0, 20.0], [5.0, 1.0])  # the longer group was the faster one
    for model in (untouched, equal, falling):
        model.observe([], [])
        assert 0 < model.cost(1) < model.cost(2) < model.cost(50)
