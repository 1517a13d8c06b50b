"""Lanes' norms are the norms, tell diverged lanes, and depend on no other lane."""

import math

import pytest
import torch

from fedscale.federated.aggregation import clip_factors, lane_norms
from fedscale.federated.aggregation.norms import WIDTH

WIDTHS = (3, WIDTH, WIDTH + 1, 2 * WIDTH - 1)
OFFSETS = [10 + sum(WIDTHS[:i]) for i in range(len(WIDTHS))]
SIZE = OFFSETS[-1] + WIDTHS[-1]


def blocks_of(lanes: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(lanes, width, generator=draws, dtype=dtype) for width in WIDTHS]


@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13), (torch.bfloat16, 1e-5)]
)
def test_they_are_the_norms_of_the_lanes_or_of_their_updates(
    from_start: bool, dtype: torch.dtype, tolerance: float
) -> None:
    blocks = blocks_of(6, dtype)
    start = torch.randn(SIZE, dtype=dtype) if from_start else None
    whole = torch.cat(blocks, dim=1).double()
    expected = torch.linalg.vector_norm(whole - (start[10:].double() if start is not None else 0), dim=1)
    norms = lane_norms(blocks, OFFSETS, start)
    assert norms.dtype == torch.float64 and norms.device.type == "cpu"
    torch.testing.assert_close(norms, expected, rtol=tolerance, atol=0)


def test_only_diverged_lanes_have_norms_that_are_not_finite() -> None:
    blocks = blocks_of(5)
    blocks[2][1, 5], blocks[0][3, 0] = math.nan, -math.inf
    blocks[1][4, :2] = 3e38  # finite, though its square is not in float32
    norms = lane_norms(blocks, OFFSETS, torch.zeros(SIZE))
    assert norms.isfinite().tolist() == [True, False, True, False, True]
    assert norms[4] == pytest.approx(math.sqrt(2) * 3e38)


@pytest.mark.parametrize("from_start", [False, True])
def test_a_lane_has_the_same_norm_in_any_group(from_start: bool) -> None:
    blocks = blocks_of(7)
    start = torch.randn(SIZE) if from_start else None
    together = lane_norms(blocks, OFFSETS, start)
    for lane in range(7):
        assert lane_norms([block[lane : lane + 1] for block in blocks], OFFSETS, start)[0] == together[lane]


def test_factors_scale_long_updates_down_to_the_norm_and_leave_short_ones() -> None:
    norms = torch.tensor([0.0, 1.0, 2.0, 8.0], dtype=torch.float64)
    assert clip_factors(norms, 2.0).tolist() == [1.0, 1.0, 1.0, 0.25]
