"""The fixed-point sum is Python's integers' sum, bit for bit, in any order, grouping and division over ranks."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedscale.errors import UserError
from fedscale.federated.aggregation import Clip, ExactAccumulator, check_used, clip_factors, lane_norms
from fedscale.federated.aggregation.fixed_point import MAGIC, MAGIC_BITS, biases
from fedscale.federated.aggregation.lanes import PIECE

CPU = torch.device("cpu")
CLIENTS, SIZE = 20, 1501


def summed(blocks: list[Tensor], offsets: list[int], weights: list[float], bits: int, size: int) -> ExactAccumulator:
    accumulator = ExactAccumulator(size, CPU, bits)
    accumulator.add(blocks, offsets, torch.tensor(weights, dtype=torch.float64))
    return accumulator


def quantum(value: float, weight: float, bits: int) -> int:
    """rint(double(v)·w·2^bits) by exact arithmetic: the product rounded to a double once, then to an integer."""
    return round(Fraction(value * weight) * 2**bits)  # Fraction rounds halves to even


def test_the_constant_is_the_pattern_of_its_double() -> None:
    assert torch.tensor(MAGIC, dtype=torch.float64).view(torch.int64).item() == MAGIC_BITS
    total = torch.tensor([MAGIC] * 7, dtype=torch.float64).view(torch.int64).sum()
    assert int(total - biases(7)) == 0


finite = st.floats(-2000, 2000, width=32)
dyadic = st.integers(-(2**18), 2**18).map(lambda n: n / 2**6)  # halves of steps are common among these; all fit 38 bits


@given(
    st.integers(1, 5).flatmap(lambda k: st.lists(st.lists(finite | dyadic, min_size=k, max_size=k), min_size=1)),
    st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.125, 0.5, 1.0]), min_size=5, max_size=5),
    st.integers(1, 38),
)
def test_it_is_the_sum_of_pythons_integers(columns: list[list[float]], weights: list[float], bits: int) -> None:
    weights = weights[: len(columns[0])]
    block = torch.tensor(columns, dtype=torch.float64).t().contiguous()
    expected = [sum(quantum(v, w, bits) for v, w in zip(column, weights, strict=True)) for column in columns]
    assert summed([block], [0], weights, bits, len(columns)).vector.tolist() == expected


def test_halves_go_to_the_even_neighbour_and_both_signs_alike() -> None:
    values = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.75, -0.75, 0.0, -0.0]])
    assert summed([values / 2], [0], [1.0], 1, 10).vector.tolist() == [0, 2, 2, 0, -2, -2, 1, -1, 0, 0]


def test_values_up_to_the_limit_are_exact() -> None:
    largest = 2.0**51 - 1
    block = torch.tensor([[largest / 4, -largest / 4]], dtype=torch.float64)
    assert summed([block], [0], [1.0], 2, 2).vector.tolist() == [int(largest), -int(largest)]


@pytest.fixture(scope="module")
def cohort() -> tuple[Tensor, list[float], Tensor, Tensor]:
    """Clients' vectors [20, 1501] float32, their normalised weights, the start vector, and factors that clip some."""
    draws = torch.Generator().manual_seed(0)
    vectors = torch.randn(CLIENTS, SIZE, generator=draws) * torch.logspace(-6, 1, CLIENTS)[:, None]
    counts = torch.randint(1, 500, (CLIENTS,), generator=draws).double()
    start = torch.randn(SIZE, generator=draws)
    factors = clip_factors(lane_norms([vectors], [0], start), 50.0)
    assert 0 < int((factors < 1).sum()) < CLIENTS
    return vectors, (counts / counts.sum()).tolist(), start, factors


@given(
    st.permutations(range(CLIENTS)),
    st.lists(st.integers(1, CLIENTS), max_size=6),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_order_grouping_and_ranks_leave_no_trace(
    cohort: tuple[Tensor, list[float], Tensor, Tensor], order: list[int], cuts: list[int], ranks: int, clipped: bool
) -> None:
    vectors, weights, start, factors = cohort

    def add(accumulator: ExactAccumulator, clients: list[int]) -> None:
        # The widest block lies somewhere else in another entry's order; a group is two entries here.
        group = vectors[clients]
        blocks = [group[:, :1000].contiguous(), group[:, 1000:].contiguous()]
        clip = Clip(start, factors[clients]) if clipped else None
        accumulator.add(blocks, [0, 1000], torch.tensor(weights, dtype=torch.float64)[clients], clip=clip)

    alone = ExactAccumulator(SIZE, CPU, 40)
    add(alone, list(range(CLIENTS)))
    shards = [ExactAccumulator(SIZE, CPU, 40) for _ in range(ranks)]
    edges = [0, *sorted(set(cuts) - {CLIENTS}), CLIENTS]
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
        add(shards[number % ranks], list(order[first:last]))
    reduced = shards[0]
    for other in shards[1:]:
        reduced.vector += other.vector
    assert torch.equal(reduced.vector, alone.vector)
    assert torch.equal(reduced.mean(1.0, torch.float32), alone.mean(1.0, torch.float32))
    assert sum(shard.used for shard in shards) == pytest.approx(alone.used)


def test_pieces_of_a_block_give_what_the_block_gives() -> None:
    block = torch.randn(3, PIECE, generator=torch.Generator().manual_seed(0))
    weights = [0.25, 0.5, 0.25]
    whole = summed([block], [0], weights, 40, PIECE).vector
    halves = [block[:, : PIECE // 2].contiguous(), block[:, PIECE // 2 :].contiguous()]
    assert torch.equal(summed(halves, [0, PIECE // 2], weights, 40, PIECE).vector, whole)
    step = [round(Fraction(float(v)) * Fraction(w) * 2**40) for v, w in zip(block[:, -1], weights, strict=True)]
    assert int(whole[-1]) == sum(step)


def test_a_value_too_large_is_the_users_error_and_adds_nothing() -> None:
    accumulator = ExactAccumulator(3, CPU, 40)
    half = torch.tensor([0.5], dtype=torch.float64)
    message = (
        r"federate\.aggregate\.fraction_bits=40: the largest value of a client, 4\.1e\+03 .* 2\^11; set it to 39 or"
    )
    with pytest.raises(UserError, match=message):
        accumulator.add([torch.tensor([[1.0, -4100.0, 2.0]])], [0], half)
    assert accumulator.used == 0 and accumulator.vector.count_nonzero() == 0
    # … and with as many bits as it proposes, the value fits.
    proposed = ExactAccumulator(3, CPU, 39)
    proposed.add([torch.tensor([[1.0, -4100.0, 2.0]])], [0], half)
    assert int(proposed.vector[1]) == -4100 * 2**38


def test_a_start_too_large_for_a_clipped_lane_is_too_large() -> None:
    accumulator = ExactAccumulator(2, CPU, 40)
    start = torch.tensor([5000.0, 0.0])
    clip = Clip(start, torch.tensor([0.1], dtype=torch.float64))
    with pytest.raises(UserError, match="fraction_bits"):
        accumulator.add([torch.ones(1, 2)], [0], torch.ones(1, dtype=torch.float64), clip=clip)


def test_a_loose_bound_makes_it_look_and_a_tight_one_does_not() -> None:
    block, one = torch.ones(1, 4), torch.ones(1, dtype=torch.float64)
    loose, tight = (ExactAccumulator(4, CPU, 40) for _ in range(2))
    loose.add([block], [0], one, bounds=torch.tensor([1e9], dtype=torch.float64))
    tight.add([block], [0], one, bounds=torch.tensor([2.0], dtype=torch.float64))
    assert loose.used == pytest.approx(2.0**-22) and tight.used == pytest.approx(2.0**-21, rel=2e-3)
    assert torch.equal(loose.vector, tight.vector)


def test_a_diverged_lane_with_weight_is_a_programming_error() -> None:
    for bounds in (None, torch.tensor([math.nan], dtype=torch.float64)):
        with pytest.raises(AssertionError, match="lane 0 is not finite"):
            ExactAccumulator(2, CPU, 40).add(
                [torch.tensor([[math.nan, 1]])], [0], torch.ones(1, dtype=torch.float64), bounds=bounds
            )


def test_sums_that_could_overflow_are_the_users_error_on_one_rank_and_over_all() -> None:
    block, one = torch.full((1, 1), 1800.0), torch.ones(1, dtype=torch.float64)
    ranks = [ExactAccumulator(1, CPU, 40) for _ in range(2)]
    for rank in ranks:
        for _ in range(1500):
            rank.add([block], [0], one)
        assert 0 < rank.headroom < 0.5
    check_used(ranks[0].used, 40)
    with pytest.raises(
        UserError, match=r"fraction_bits=40: the sum over the cohort can reach 5\.4e\+06; .* 39 or less"
    ):
        check_used(sum(rank.used for rank in ranks), 40)
    with pytest.raises(UserError, match="the sum over the cohort"):
        for _ in range(1000):
            ranks[0].add([block], [0], one)
    ranks[0].reset()
    assert ranks[0].headroom == 1
