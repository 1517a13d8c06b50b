"""TensorBoard's event files hold what metrics.jsonl holds, also after a resume; other ranks write nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.federated.metrics import MetricsLog

Rows = dict[int, dict[str, float]]


def metrics_rows(folder: Path) -> Rows:
    """The numbers of metrics.jsonl by round, in float32 as event files have them."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        row["round"]: {name: float(np.float32(v)) for name, v in row.items() if name != "round" and v is not None}
        for row in rows
    }


def tensorboard_rows(folder: Path) -> Rows:
    """The same from the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    rows: Rows = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            rows.setdefault(event.step, {})[tag.removeprefix("federate/")] = event.value
    return rows


@pytest.mark.slow
def test_event_files_hold_the_rows_also_of_rounds_that_were_done_again(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path, 0, tensorboard=True, main=True)
    rows: list[dict[str, Any]] = [{"round": n, "loss": 1 / n, "diverged": 0} for n in (1, 2, 3)]
    for row in rows:
        first.write(row)
    first.close()
    again = MetricsLog(tmp_path, 2, tensorboard=True, main=True)  # round 3 was not saved
    again.write({"round": 3, "loss": 0.1, "diverged": 1, "all": 50.0})
    again.close()
    assert metrics_rows(tmp_path).keys() == {1, 2, 3}
    assert metrics_rows(tmp_path)[3] == pytest.approx({"loss": 0.1, "diverged": 1, "all": 50.0})
    assert tensorboard_rows(tmp_path) == metrics_rows(tmp_path)


@pytest.mark.slow
def test_event_files_hold_every_row_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, tensorboard=True, main=True)
    log.write({"round": 1, "loss": 0.5})
    assert tensorboard_rows(tmp_path) == {1: {"loss": 0.5}}, "nothing waits for the end, which may not come"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, tensorboard=True, main=False)
    log.write({"round": 1, "loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())
