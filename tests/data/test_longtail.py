import pytest

from fedscale.data.longtail import long_tail_counts, pareto_counts
from fedscale.errors import UserError


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


def test_pareto_counts_have_the_ends_and_the_total_of_imagenet_lt_and_nearly_its_groups() -> None:
    counts = pareto_counts(1280, 5, 115_846, 1000)
    assert (len(counts), sum(counts), counts[0], counts[-1]) == (1000, 115_846, 1280, 5)
    assert counts == sorted(counts, reverse=True)
    many, few = sum(n > 100 for n in counts), sum(n < 20 for n in counts)
    assert abs(many - 385) <= 5 and abs(few - 136) <= 15  # those of the published list


@pytest.mark.parametrize("images", [90, 140, 250])
def test_pareto_counts_hit_any_total_that_the_ends_admit(images: int) -> None:
    counts = pareto_counts(40, 4, images, 12)
    assert (len(counts), sum(counts), counts[0], counts[-1]) == (12, images, 40, 4)


@pytest.mark.parametrize("images", [40, 400])
def test_a_total_that_the_ends_do_not_admit_is_refused(images: int) -> None:
    with pytest.raises(UserError, match=f"images={images}: 12 classes of 40 down to 4 images hold"):
        pareto_counts(40, 4, images, 12)
