"""The cohort is a function of (seed, round)."""

from collections import Counter

from fedscale.federated.cohort import by_steps, sample_cohort


def test_equal_rounds_give_equal_cohorts_of_different_clients() -> None:
    assert sample_cohort(1, 5, 20, 8) == sample_cohort(1, 5, 20, 8)
    assert len({tuple(sample_cohort(1, r, 20, 8)) for r in range(10)}) == 10
    assert all(len(set(sample_cohort(1, r, 20, 8))) == 8 for r in range(10))


def test_every_client_is_drawn_equally_often() -> None:
    drawn = Counter(client for r in range(2000) for client in sample_cohort(3, r, 20, 8))
    assert sorted(drawn) == list(range(20))
    assert all(abs(n - 800) < 5 * (2000 * 0.4 * 0.6) ** 0.5 for n in drawn.values())  # five standard deviations


def test_the_largest_clients_come_first() -> None:
    assert by_steps([0, 2, 3, 5], [10, 0, 30, 10, 0, 50]) == [5, 2, 0, 3]
