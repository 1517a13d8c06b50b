"""The sum of weighted lanes is the weighted sum, whatever the kind, and reads no lane without weight."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedscale.federated.aggregation import Clip, clip_factors, lane_norms, make_accumulator
from fedscale.federated.aggregation.accumulate import Kind
from fedscale.federated.aggregation.lanes import PIECE, columns_at_once, runs

KINDS: tuple[Kind, ...] = ("fp32", "fp64", "exact")
CPU = torch.device("cpu")
WIDTHS = (1, 7, 4096, PIECE // 5 + 3)  # the last is more than one piece of five lanes
TOLERANCE = {"fp32": 2e-6, "fp64": 1e-15, "exact": 6 * 2.0**-41}


def lanes(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[int], int]:
    """Blocks [count, width] of every width, with a gap after each in the vector of the size given last."""
    draws = torch.Generator().manual_seed(seed)
    blocks = [torch.randn(count, width, generator=draws, dtype=dtype) for width in WIDTHS]
    offsets = [sum(WIDTHS[:i]) + 2 * i for i in range(len(WIDTHS))]
    return blocks, offsets, offsets[-1] + WIDTHS[-1] + 2


def reference(blocks: list[Tensor], offsets: list[int], size: int, weights: Tensor) -> Tensor:
    total = torch.zeros(size, dtype=torch.float64)
    for block, offset in zip(blocks, offsets, strict=True):
        for row, weight in zip(block, weights, strict=True):
            if weight:
                total[offset : offset + block.shape[1]] += row.double() * weight
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_weighted_mean_and_leaves_gaps_alone(kind: Kind, dtype: torch.dtype) -> None:
    blocks, offsets, size = lanes(5, dtype=dtype)
    weights = torch.tensor([0.1, 0.25, 0.3, 0.05, 0.2], dtype=torch.float64)
    accumulator = make_accumulator(kind, size, CPU)
    accumulator.add(blocks, offsets, weights)
    accumulator.add(blocks[:2], offsets[:2], weights)
    expected = reference(blocks, offsets, size, weights) + reference(blocks[:2], offsets[:2], size, weights)
    mean = accumulator.mean(0.9, torch.float64)
    assert (mean - expected / 0.9).abs().max() < TOLERANCE[kind] * 2
    assert mean[1:3].count_nonzero() == 0 and mean[-2:].count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_lane_without_weight_is_not_read(kind: Kind) -> None:
    blocks, offsets, size = lanes(5)
    weights = torch.tensor([0, 0.25, 0, 0.05, 0], dtype=torch.float64)
    for block in blocks:
        block[0], block[2], block[4] = math.nan, math.inf, -math.inf
    accumulator = make_accumulator(kind, size, CPU)
    accumulator.add(blocks, offsets, weights, bounds=lane_norms(blocks))
    expected = reference(blocks, offsets, size, weights)
    assert (accumulator.mean(1.0, torch.float64) - expected).abs().max() < TOLERANCE[kind]
    before = accumulator.vector.clone()
    accumulator.add(blocks, offsets, torch.zeros(5, dtype=torch.float64))
    assert torch.equal(accumulator.vector, before)


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_in_the_sum_is_clipping_the_updates(kind: Kind) -> None:
    blocks, offsets, size = lanes(5)
    start = torch.randn(size, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([0.1, 0.25, 0.3, 0, 0.2], dtype=torch.float64)
    for i, block in enumerate(blocks):  # one update is short, so that it is not clipped, and one has diverged
        block[1] = start[offsets[i] : offsets[i] + block.shape[1]] + 1e-4 * block[1]
        block[3] = math.nan
    norms = lane_norms(blocks, offsets, start)
    factors = clip_factors(norms, 3.0)
    accumulator = make_accumulator(kind, size, CPU)
    bounds = norms + torch.linalg.vector_norm(start.double())
    accumulator.add(blocks, offsets, weights, clip=Clip(start, factors), bounds=bounds)

    expected = torch.zeros(size, dtype=torch.float64)
    used = [0, 1, 2, 4]
    for lane in used:
        parts = [
            (b[lane].double(), start[o : o + b.shape[1]].double(), o) for b, o in zip(blocks, offsets, strict=True)
        ]
        norm = math.sqrt(sum(float((v - s).square().sum()) for v, s, _ in parts))
        assert (norm < 3) == (lane == 1)
        for v, s, offset in parts:
            expected[offset : offset + len(v)] += weights[lane] * (s + min(1, 3 / norm) * (v - s))
    assert (accumulator.mean(1.0, torch.float64) - expected).abs().max() < max(TOLERANCE[kind], 1e-6)
    assert factors[1] == 1


def test_clipping_nobody_is_the_same_sum_bit_for_bit() -> None:
    blocks, offsets, size = lanes(5)
    weights, start = torch.full((5,), 0.2, dtype=torch.float64), torch.randn(size)
    plain, clipped = (make_accumulator("exact", size, CPU) for _ in range(2))
    plain.add(blocks, offsets, weights)
    clipped.add(blocks, offsets, weights, clip=Clip(start, clip_factors(lane_norms(blocks, offsets, start), 1e9)))
    assert torch.equal(plain.vector, clipped.vector)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_round_begins_at_zero(kind: Kind) -> None:
    blocks, offsets, size = lanes(2)
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    accumulator = make_accumulator(kind, size, CPU)
    accumulator.add(blocks, offsets, weights)
    once, vector = accumulator.vector.clone(), accumulator.vector
    accumulator.reset()
    accumulator.add(blocks, offsets, weights)
    assert accumulator.vector is vector and torch.equal(once, vector)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_no_client_and_ill_fitting_blocks_are_programming_errors(kind: Kind) -> None:
    accumulator = make_accumulator(kind, 4, CPU)
    half = torch.tensor([0.5], dtype=torch.float64)
    with pytest.raises(AssertionError, match="mean of no client"):
        accumulator.mean(0.0, torch.float32)
    with pytest.raises(AssertionError, match="block of 3 at 2"):
        accumulator.add([torch.ones(1, 3)], [2], half)
    with pytest.raises(AssertionError, match="expected finite and 0 or more"):
        accumulator.add([torch.ones(1, 3)], [0], -half)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=12))
def test_runs_cover_exactly_the_lanes_with_weight(weights: list[float]) -> None:
    found = runs(torch.tensor(weights, dtype=torch.float64))
    covered = [lane for first, last in found for lane in range(first, last)]
    assert covered == [lane for lane, weight in enumerate(weights) if weight]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))


@given(st.integers(1, PIECE // 16))
def test_rows_of_a_piece_fit_the_scratch_and_begin_on_cache_lines_of_unlike_sets(count: int) -> None:
    width = columns_at_once(count)
    assert 0 < width * count <= PIECE < (width + 32) * count
    assert width % 16 == 0 and width // 16 % 2 == 1


def test_more_lanes_than_fit_the_scratch_are_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="lanes at once"):
        columns_at_once(PIECE // 16 + 1)
