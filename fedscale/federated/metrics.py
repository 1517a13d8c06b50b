"""Metrics of a federated run: a JSON row a round, and event files for TensorBoard where they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedscale import files


class MetricsLog:
    """`metrics.jsonl` of the stage's folder, from the last saved round on; the main rank alone writes."""

    def __init__(self, folder: Path, finished: int, tensorboard: bool, main: bool) -> None:
        self._path = folder / "metrics.jsonl"
        self._main = main
        self._writer: Any = None
        self.begun_with: list[dict[str, Any]] = []  # the rows of the rounds before
        if not main:
            return
        self.begun_with = [row for row in files.read_jsonl(self._path) if row["round"] <= finished]
        files.write_jsonl(self._path, self.begun_with)  # rows of rounds that will be done again are dropped
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # only here: importing it takes a second

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=finished + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Append a round's row; its numbers become scalars `federate/<name>`."""
        if not self._main:
            return
        files.append_jsonl(self._path, row)
        if self._writer:
            for name, value in row.items():
                if name != "round" and isinstance(value, int | float):
                    self._writer.add_scalar(f"federate/{name}", value, row["round"])
            self._writer.flush()  # a stage that is stopped or killed goes on behind its last round

    def close(self) -> None:
        """Finish the event files."""
        if self._writer:
            self._writer.close()
