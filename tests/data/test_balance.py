"""Even draws are even, in any size."""

import numpy as np
import pytest

from fedscale.data.balance import drawn_evenly


@pytest.mark.parametrize("count", [1, 5, 7, 23])
def test_every_item_comes_as_often_as_the_others_give_or_take_one(count: int) -> None:
    items = np.array([3, 8, 11, 20, 40])
    drawn = drawn_evenly(items, count, np.random.default_rng(0))
    times = np.array([(drawn == item).sum() for item in items])
    assert len(drawn) == count == times.sum()
    assert times.max() - times.min() <= 1
    again = drawn_evenly(items, count, np.random.default_rng(0))
    assert np.array_equal(drawn, again)
