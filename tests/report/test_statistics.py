"""Deviations are the sample's, and intervals those of Student's t over paired differences."""

import pytest

from fedscale.report.statistics import Difference, Spread, deviation, difference, spread


def test_the_deviation_divides_by_one_less_than_the_seeds() -> None:
    assert deviation([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 3) ** 0.5)
    assert spread([50.0, 52.0]) == Spread(51.0, pytest.approx(2**0.5), 2)


def test_one_value_has_no_deviation_and_no_interval_and_none_has_no_mean() -> None:
    assert spread([50.0]) == Spread(50.0, None, 1)
    assert difference([3.0]) == Difference(3.0, None, None, 1)
    assert spread([]) is None and difference([]) is None


@pytest.mark.parametrize(
    ("differences", "quantile"),
    [([8.1, 7.4], 12.706), ([1.0, 2.0, 4.0], 4.303), ([1.0, -1.0, 3.0, 2.0, 0.5], 2.776)],
    ids=["two seeds", "three seeds", "five seeds"],
)
def test_the_interval_is_the_mean_with_the_tabled_quantile_of_the_standard_error(
    differences: list[float], quantile: float
) -> None:
    found = difference(differences)
    spread_of = spread(differences)
    assert found and found.low is not None and found.high is not None
    assert spread_of and spread_of.deviation is not None
    half = quantile * spread_of.deviation / len(differences) ** 0.5
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=1e-3)
