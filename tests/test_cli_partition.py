"""`fedscale shards partition`: the partition that the run itself uses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscale.cli import app

TINY = ["configs/demo.yaml", "data.shapes.train_per_class=40", "data.shapes.test_per_class=2",
        "data.open_pool.reserve=10", "data.open_pool.validation=2", "data.partition.clients=4",
        "federate.clients_per_round=2"]  # fmt: skip


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["shards", "partition", *TINY, *words])


def test_it_exports_the_very_partition_of_the_run(shown, tmp_path: Path) -> None:
    result = shown("seeds=[3]", "--out", "mine.json", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout[result.stdout.index("{") :])
    assert (found["clients"], found["seed"], found["kind"]) == (4, 3, "dirichlet_equal")
    short = ["variant=fedavg", "seeds=[3]", "model.name=linear", "federate.rounds=1", "federate.local_epochs=1"]
    run = CliRunner().invoke(app, ["federate", *TINY, *short])
    assert run.exit_code == 0, run.output
    exported = tmp_path / "runs" / "demo" / "fedavg-s3" / "federate" / "partition.json"
    assert (tmp_path / "mine.json").read_text() == exported.read_text()


def test_the_table_says_what_the_picture_shows(shown, tmp_path: Path) -> None:
    result = shown("--plot", "mine.svg", "data.partition.kind=pathological", "data.partition.classes_per_client=3")
    assert result.exit_code == 0, result.output
    assert "shapes: pathological, 3 classes each, 4 clients, seed 1" in result.stdout
    assert "3 to 3, median 3" in result.stdout
    assert "seeds 2 have partitions of their own" in result.stdout
    assert "pathological, 3 classes each" in (tmp_path / "mine.svg").read_text()


def test_a_picture_in_another_format_is_refused_before_anything_is_built(shown, tmp_path: Path) -> None:
    result = shown("--plot", "mine.pdf")
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())
