"""Means, changes paired by seed, the verdict, and the closing table."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fedscale.report import closing_lines, table
from fedscale.report.compare import Comparison, duration, signed, verdict


def row(variant: str, seed: int, all_: float, few: float | None = 10.0, seconds: float = 60.0) -> dict[str, Any]:
    scores = {"all": all_, "many": 80.0, "medium": 50.0, "few": few}
    return {"variant": variant, "method": "fedavg", "seed": seed, **scores, "seconds": seconds}


ROWS = [row("fedavg", 7, 50.0), row("fedavg", 8, 52.0), row("full", 7, 58.1, 31.0), row("full", 8, 59.4, 28.2)]


def shown(rows: list[dict[str, Any]], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table(rows))
    return console.file.getvalue()


def test_the_verdict_names_the_change_of_each_seed():
    assert verdict(ROWS) == "full over fedavg: All +8.1 / +7.4, Few +21.0 / +18.2 (seeds 7 / 8)"


def test_a_change_for_the_worse_is_said_as_plainly():
    assert verdict([row("fedavg", 7, 50.0), row("full", 7, 47.5)]).startswith("full over fedavg: All −2.5, Few 0.0")


def test_the_verdict_of_a_single_run_gives_its_scores():
    assert verdict([row("demo", 7, 50.0)]) == "demo: All 50.0, Few 10.0 (seed 7)"


def test_changes_are_paired_by_seed_and_a_seed_without_baseline_has_none():
    comparison = Comparison((*ROWS, row("full", 9, 99.0)))

    assert comparison.change("full", 9, "all") is None
    assert comparison.mean_change("full", "all") == pytest.approx((8.1 + 7.4) / 2)
    assert comparison.mean("full", "all") == pytest.approx((58.1 + 59.4 + 99.0) / 3)


def test_the_baseline_is_fedavg_wherever_it_stands_and_else_the_first_variant():
    assert Comparison(tuple(reversed(ROWS))).baseline == "fedavg"
    assert Comparison((row("a", 7, 1.0), row("b", 7, 2.0))).baseline == "a"


def test_without_a_variant_full_the_best_on_all_is_spoken_of():
    rows = (row("fedavg", 7, 50.0), row("moon", 7, 55.0), row("fedprox", 7, 53.0))

    assert Comparison(rows).headline == "moon"


def test_the_table_has_a_row_a_variant_with_mean_seeds_and_changes():
    lines = shown(ROWS).splitlines()

    assert lines[0].split() == ["variant", "All", "Many", "Medium", "Few", "Δ", "All", "Δ", "Few", "time"]
    assert lines[4].split()[:7] == ["full", "58.8", "80.0", "50.0", "29.6", "+7.8", "+19.6"]
    assert lines[5].split()[:8] == ["seed", "7", "58.1", "80.0", "50.0", "31.0", "+8.1", "+21.0"]
    assert "+" not in lines[1]  # the baseline is not compared with itself


def test_the_table_fits_a_terminal_of_80_columns():
    rows = [row(variant, seed, 50.0, seconds=59_999) for variant in ("fedavg", "pretrain", "align") for seed in (7, 8)]

    assert all(len(line.rstrip()) <= 80 for line in shown(rows, width=200).splitlines())


def test_the_table_of_one_run_shows_no_changes_and_a_missing_group_as_a_dash():
    text = shown([row("demo", 7, 50.0, few=None)])

    assert "Δ" not in text and "–" in text


def test_the_closing_line_is_the_verdict():
    assert closing_lines(ROWS) == [verdict(ROWS)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.44, "8.4 s"), (59.4, "59 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"), (11_530, "3 h 12 min"), (None, "–")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_a_change_that_rounds_to_nothing_has_no_sign():
    assert [signed(0.04), signed(-0.04), signed(-0.06)] == ["0.0", "0.0", "−0.1"]
