"""The whole comparison table: what it holds, and that every way to write it shows the same of it."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from fedscale.errors import UserError
from fedscale.report.compare import Comparison
from fedscale.report.scoreboard import Scoreboard, Section, scoreboard
from fedscale.report.written import latex, lines, markdown, terminal

METRICS = ("all", "many", "medium", "few")


def row(variant: str, seed: int, all_: float, split: str = "test", **more: Any) -> dict[str, Any]:
    scores = dict(zip(METRICS, (all_, 80.0, 50.0, all_ - 30), strict=True))
    rounds = {way: {**scores, "all": all_ + gain} for way, gain in (("last", -4.0), ("best", 2.0), ("mean10", -5.0))}
    clients = {"client_mean": all_ + 9, "client_variance": 100.0, "client_worst_decile": all_ - 20}
    cost = {"bytes_down": 39.4e6, "bytes_up": 2 * 39.4e6, "flops": 5.6e12}
    errors = {"balanced_error": 100 - all_, "ece": 4.0}
    named = {"variant": variant, "method": "fedavg", "seed": seed, "aligned": True, "split": split, "seconds": 7200.0}
    return {**named, **scores, **errors, **clients, **rounds, "best_round": 3, "rounds_evaluated": 12, **cost, **more}


ROWS = [row("fedavg", 7, 50.0), row("fedavg", 8, 52.0), row("full_α&1", 7, 58.1), row("full_α&1", 8, 59.4)]
OLD = ("variant", "method", "seed", *METRICS, "seconds")


def section(board: Scoreboard, key: str) -> Section:
    return next(section for section in board.sections if section.key == key)


def shown(board: Scoreboard, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(terminal(board))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_has_means_deviations_and_paired_differences_with_their_interval() -> None:
    first, second = section(scoreboard(ROWS), "final").rows
    assert first.cells[0] and (first.cells[0].mean, first.cells[0].deviation) == pytest.approx((51.0, 2**0.5))
    assert first.changes == () and first.best[0] is False and second.best[0] is True
    change = second.changes[0]
    assert change and (change.mean, change.low, change.high) == pytest.approx((7.75, 3.3028, 12.1972), abs=1e-3)


def test_differences_are_taken_at_the_seeds_that_both_have() -> None:
    board = scoreboard([*ROWS, row("full_α&1", 9, 99.0)])
    change = section(board, "final").rows[1].changes[0]
    assert change and (change.seeds, change.mean) == (2, pytest.approx(7.75))
    assert lines(section(board, "final"), 3)[0].label == "fedavg (2 of 3 seeds)"


def test_the_baseline_can_be_named_and_an_unknown_one_is_refused_with_the_names() -> None:
    board = scoreboard(ROWS, "full_α&1")
    assert [bool(r.changes) for r in section(board, "final").rows] == [True, False]
    with pytest.raises(UserError, match=r"--baseline moon: expected one of fedavg, full_α&1"):
        scoreboard(ROWS, "moon")


def test_the_best_round_on_test_is_called_an_oracle_and_on_validation_it_is_not() -> None:
    test = scoreboard(ROWS)
    validation = scoreboard([row("fedavg", 7, 50.0, "validation")])
    assert "oracle" in section(test, "best").title and any("oracle" in note for note in test.notes)
    written = markdown(validation) + latex(validation) + shown(validation)
    assert "oracle" not in written and "chosen on the validation split" in written


def test_all_three_ways_over_the_rounds_are_named_and_hold_their_own_numbers() -> None:
    board = scoreboard(ROWS)
    firsts = {key: section(board, key).rows[0].cells[0] for key in ("final", "last", "best", "mean10")}
    assert [cell.mean for cell in firsts.values() if cell] == pytest.approx([51.0, 47.0, 53.0, 46.0])
    titles = " ".join(s.title for s in board.sections)
    assert all(name in titles for name in ("Last round", "Best round", "Mean of the last 10"))


def test_without_alignments_the_last_round_and_the_final_model_are_one_section() -> None:
    plain = [{**r, "aligned": False, "last": {metric: r[metric] for metric in METRICS}} for r in ROWS]
    board = scoreboard(plain)
    assert [s.key for s in board.sections] == ["last", "best", "mean10", "errors", "cost"]
    assert section(board, "last").rows[0].cells[0] == section(scoreboard(ROWS), "final").rows[0].cells[0]


def test_a_mean_over_fewer_than_ten_rounds_is_said_to_be_one() -> None:
    assert not any("fewer than ten" in note for note in scoreboard(ROWS).notes)
    assert any("fewer than ten" in note for note in scoreboard([*ROWS[:3], {**ROWS[3], "rounds_evaluated": 9}]).notes)


def test_lower_errors_and_higher_accuracies_stand_out_and_costs_never() -> None:
    board = scoreboard(ROWS)
    errors = section(board, "errors").rows
    assert errors[1].best == (True, True, True, True, True)
    assert errors[0].best == (False, True, False, True, False)  # equal ones stand out together
    assert not any(any(r.best) or any(r.changes) for r in section(board, "cost").rows)


def test_costs_are_in_units_that_read_well() -> None:
    cost = section(scoreboard(ROWS), "cost")
    assert [column.title for column in cost.columns] == ["Down (MB)", "Up (MB)", "Compute (TFLOP)", "Time (h)"]
    assert [cell.mean for cell in cost.rows[0].cells if cell] == pytest.approx([39.4, 78.8, 5.6, 2.0])


def test_rows_of_older_runs_have_the_sections_that_they_recorded() -> None:
    board = scoreboard([{name: r[name] for name in OLD} for r in ROWS])
    assert [(s.key, len(s.columns)) for s in board.sections] == [("final", 4), ("cost", 1)]
    assert not any("Clients" in note or "oracle" in note for note in board.notes)


def test_a_variant_without_a_value_shows_a_dash_beside_those_that_have_one() -> None:
    mixed = [ROWS[0], {**row("old", 7, 40.0), "ece": None}]
    ece = [line.cells[1] for line in lines(section(scoreboard(mixed), "errors"), 1) if not line.change]
    assert [cell.number for cell in ece] == ["4.0", "–"]
    assert not ece[0].best  # there is nothing to be better than


def test_one_seed_has_neither_deviations_nor_intervals() -> None:
    text = markdown(scoreboard([ROWS[0], ROWS[2]]))
    assert "±" not in text and "[" not in text and "| Δ | +8.1 |" in text
    assert "One run each (seed 7)." in text


def numbers(text: str) -> list[str]:
    """Every number with one decimal of the tables, in the order in which they are read."""
    return re.findall(r"[+-]?\d+\.\d\b", text.replace("$-$", "-").replace("−", "-"))


def test_markdown_latex_and_json_hold_the_same_numbers_in_the_same_order() -> None:
    board = scoreboard(ROWS)
    body = markdown(board).split("\n- ")[0]
    assert numbers(body) == numbers(latex(board)) and len(numbers(body)) > 60
    tree = json.loads(json.dumps(board.to_dict()))
    assert tree["sections"][0]["rows"][1]["changes"][0]["mean"] == pytest.approx(7.75)
    assert sorted(numbers(shown(board))) == sorted(numbers(body))


def test_markdown_has_as_many_cells_in_every_row_and_escapes_names() -> None:
    text = markdown(scoreboard([ROWS[0], row("a|b_c", 7, 60.0)]))
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1
    assert r"| a\|b\_c |" in text


def test_latex_is_balanced_and_escaped() -> None:
    text = latex(scoreboard(ROWS))
    assert r"full\_$\alpha$\&1" in text and r"accuracy (\%)" in text
    assert all(text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 6 for name in ("table", "tabular"))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii() and not re.search(r"(?<!\\)[%#]", body)
    for line in body.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) in (4, 5)


def test_the_terminals_table_fits_80_columns_where_there_are_four_metrics() -> None:
    text = shown(scoreboard(ROWS), width=200).split("Final model, errors")[0]
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_a_deeper_metric_is_reached_by_its_dotted_name() -> None:
    assert Comparison(tuple(ROWS)).value("fedavg", 8, "best.all") == 54.0
    assert Comparison(({**ROWS[0], "best": None},)).value("fedavg", 7, "best.all") is None
