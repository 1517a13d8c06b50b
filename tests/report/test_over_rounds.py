"""Last, best and mean of the last ten: of the rounds that were evaluated alone."""

from typing import Any

import pytest

from fedscale.report.over_rounds import over_rounds


def row(number: int, all_: float | None, few: float | None = 1.0) -> dict[str, Any]:
    scores = {} if all_ is None else {"all": all_, "many": 80.0, "medium": 50.0, "few": few}
    return {"round": number, "loss": 1.0, **scores}


def test_the_best_round_is_the_one_of_the_best_all_with_the_groups_of_that_round() -> None:
    found = over_rounds([row(1, 10.0, 90.0), row(2, 30.0, 5.0), row(3, 30.0, 6.0), row(4, 20.0, 50.0)])
    assert found["best_round"] == 2  # the first of two equals
    assert found["best"] == {"all": 30.0, "many": 80.0, "medium": 50.0, "few": 5.0}
    assert found["last"]["all"] == 20.0 and found["last"]["few"] == 50.0


def test_the_mean_is_of_the_last_ten_evaluated_rounds_whatever_lies_between() -> None:
    rows = [row(number, float(number) if number % 2 == 0 else None) for number in range(1, 41)]
    assert over_rounds(rows)["mean10"]["all"] == pytest.approx(sum(range(22, 41, 2)) / 10)
    assert over_rounds(rows)["rounds_evaluated"] == 20
    assert over_rounds(rows[:6])["mean10"]["all"] == pytest.approx((2 + 4 + 6) / 3)


def test_a_group_without_classes_has_no_value_and_a_run_without_rounds_has_none_at_all() -> None:
    assert over_rounds([row(1, 10.0, None)])["mean10"]["few"] is None
    found = over_rounds([row(1, None)])
    assert found == {"last": None, "best": None, "best_round": None, "mean10": None, "rounds_evaluated": 0}
