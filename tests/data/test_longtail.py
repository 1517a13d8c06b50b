import pytest

from fedscale.data.longtail import long_tail_counts


@pytest.mark.parametrize(
    ("n_max", "factor", "classes", "total"),
    [
        (5000, 100, 10, 12_406),
        (5000, 50, 10, 13_996),
        (5000, 10, 10, 20_431),
        (4500, 100, 10, 11_165),
        (500, 100, 100, 10_847),
        (500, 50, 100, 12_608),
        (500, 10, 100, 19_573),
    ],
)
def test_the_totals_are_those_of_the_published_protocol(n_max: int, factor: float, classes: int, total: int) -> None:
    counts = long_tail_counts(n_max, factor, classes)
    assert sum(counts) == total
    assert counts[0] == n_max
    assert counts == sorted(counts, reverse=True)


def test_a_factor_of_one_is_balanced() -> None:
    assert long_tail_counts(7, 1, 4) == [7, 7, 7, 7]


def test_a_single_class_keeps_all() -> None:
    assert long_tail_counts(7, 100, 1) == [7]
