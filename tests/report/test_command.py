"""`fedscale report RUNS --table`: what it prints, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedscale.cli import app


def report(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)])


@pytest.fixture
def two(build) -> list[Path]:
    """Two methods of two experiments, as `fedscale report A B` is given them."""
    builder = build(rounds=2)
    return [builder.run("fedavg", parent="one"), builder.run("align", parent="two")]


def test_the_whole_table_is_printed_and_its_files_named(two, tmp_path):
    shown = report(*two, "--table", "--out", tmp_path / "out")

    assert shown.exit_code == 0, shown.output
    for expected in ("Best round (oracle", "Mean of the last 10", "Worst 10%", "Compute (TFLOP)", "fewer than ten"):
        assert expected in shown.output
    assert (tmp_path / "out" / "table.tex").read_text().startswith("% needs \\usepackage{booktabs}")
    assert "| align |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "figures" / "confusion.pdf").exists()


def test_as_json_the_table_is_for_programs_and_compared_with_the_baseline_that_is_named(two, tmp_path):
    shown = report(*two, "--table", "--json", "--baseline", "align", "--out", tmp_path / "out")

    board = json.loads(shown.stdout)
    rows = board["sections"][0]["rows"]
    assert board["baseline"] == "align" and [row["variant"] for row in rows] == ["fedavg", "align"]
    assert rows[0]["changes"][0]["mean"] == pytest.approx(rows[0]["cells"][0]["mean"] - rows[1]["cells"][0]["mean"])


def test_an_unknown_baseline_is_refused_in_one_line_and_nothing_is_written(two, tmp_path):
    shown = report(*two, "--baseline", "moon", "--out", tmp_path / "out")

    assert shown.exit_code == 2
    assert shown.stderr.strip() == "error: --baseline moon: expected one of fedavg, align"
    assert not (tmp_path / "out").exists()
