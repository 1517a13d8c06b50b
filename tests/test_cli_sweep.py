"""The words of `fedscale sweep`: what is shown and printed, and what is refused, without any run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedscale import files
from fedscale.cli import app

SWEEP = "configs/sweeps/demo_methods.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(app, ["sweep", SWEEP, *words], env=environment)


def test_the_list_is_for_people_and_for_programs_and_creates_nothing(tmp_path: Path) -> None:
    shown = sweep("--list", "methods=[fedavg]")
    assert shown.exit_code == 0, shown.output
    assert "tune/fedavg-lr0.1-s1000" in shown.output and "6 runs: 2 open, 4 waits" in shown.output
    rows = json.loads(sweep("--list", "--json", "methods=[fedavg]").stdout)
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[2] | {"run": "fedavg-if20-s1", "state": "waits", "point": {"data.imbalance_factor": 20}} == rows[2]
    assert list(tmp_path.iterdir()) == []


def test_the_printed_script_is_the_one_of_the_folder(tmp_path: Path) -> None:
    printed = sweep("--print-slurm", "methods=[fedavg]", "--jobs", "2")
    assert printed.exit_code == 0, printed.output
    script = (tmp_path / "runs" / "demo_methods" / "slurm" / "sweep.sbatch").read_text()
    assert printed.stdout == script and "#SBATCH --array=0-1%2\n" in script
    assert "sbatch --array=2-5%2 " in printed.stderr, "what follows once the tuning is done"


@pytest.mark.parametrize("variables", [{"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3"}])
def test_as_one_of_several_workers_it_is_refused(variables: dict[str, str]) -> None:
    result = sweep(**variables)
    assert result.exit_code == 2
    assert "started as one of several workers" in result.stderr and "--submit" in result.stderr


def test_a_report_without_a_finished_run_is_one_line(tmp_path: Path) -> None:
    result = sweep("--report", "methods=[fedavg]")
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    told = files.read_json(tmp_path / "runs" / "demo_methods" / "tuning.json")
    assert [row["state"] for row in told["methods"]["fedavg"]["candidates"]] == ["not finished"] * 2
