"""The schedule's clock: sharing cores, the engine's own groups, deals in the order that theory gives."""

import numpy as np
import pytest

from fedscale.planning.schedule import DEALS, Population, shared_cores, simulated, weighed

EQUAL = Population(np.full(1000, 40), 256, 1, 10, 1, 7)


@pytest.fixture(scope="module")
def spread() -> Population:
    sizes = np.exp(np.random.default_rng(0).normal(3.5, 1.0, 5000)).astype(int) + 1
    return Population(sizes, 2000, 1, 10, 1, 7)


def test_loads_share_the_cores_evenly_and_none_takes_more_than_one() -> None:
    assert shared_cores([3, 3], 2) == 3
    assert shared_cores([3, 3, 3, 3], 2) == 6
    # Three at 2/3 of a core until the short one is done after 1.5, then two at a core each.
    assert shared_cores([1, 3, 3], 2) == pytest.approx(1.5 + 2)
    assert shared_cores([], 4) == 0


def test_without_noise_and_with_equal_groups_nobody_waits() -> None:
    assert simulated(EQUAL, 8, 2, noise=0.0) == pytest.approx(0)
    assert simulated(EQUAL, 1, 2, noise=0.5) == pytest.approx(0)


def test_fewer_groups_than_ranks_leave_the_rest_idle() -> None:
    share = weighed(Population(np.full(20, 100), 8, 1, 10, 1, 7), 32, 32, 10)
    assert share.of(32, 32) == pytest.approx(1 - 8 / 32)
    grouped = weighed(Population(np.full(20, 100), 8, 4, 10, 1, 7), 32, 32, 10)
    assert grouped.of(32, 32) == pytest.approx(1 - 2 / 32), "two groups of four lanes"


def test_largest_first_waits_least_and_a_random_deal_most(spread: Population) -> None:
    idle = {deal: simulated(spread, 16, 3, noise=0.1, deal=deal) for deal in DEALS}
    assert idle["largest"] < 0.03
    assert idle["largest"] < idle["queue"] < idle["arrival"] < idle["random"] + 0.05
    assert idle["random"] > 0.1


def test_noise_makes_ranks_wait(spread: Population) -> None:
    idle = [simulated(spread, 64, 2, noise=noise) for noise in (0.0, 0.3, 1.0)]
    assert idle == sorted(idle) and idle[2] > idle[0] + 0.05


def test_the_busiest_rank_has_its_share_of_the_rounds_steps(spread: Population) -> None:
    one, four, many = (weighed(spread, ranks, ranks, 4) for ranks in (1, 4, 1024))
    assert one.busiest == one.steps == four.steps
    assert four.steps / 4 <= four.busiest < 1.05 * four.steps / 4
    assert many.busiest >= one.steps / 1024 and many.of(1024, 1024) > four.of(4, 4)
    assert weighed(spread, 4, 2, 4).busiest == pytest.approx(2 * four.busiest, rel=0.05), "two cores for four ranks"
