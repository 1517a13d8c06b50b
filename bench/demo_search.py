"""Choose the demo's learning rates on the validation split: `make demo-search`.

The same grid for every variant: `federate.lr` for the two starts (random weights, pretrained), then `align.lr` on top
of each start's choice. The search has seeds of its own, and the test split is never read. Writes the whole grid and
the choices to bench/demo_search.json; configs/demo.yaml holds the choices (a test compares them).
"""

from __future__ import annotations

import dataclasses
import signal
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedscale import files
from fedscale.config import load_config, overlaid
from fedscale.pipeline import execute
from fedscale.progress import TerminalReporter
from fedscale.runs import RunFolder
from fedscale.session import Session
from fedscale.stages import children

FEDERATE_RATES = (0.03, 0.1, 0.3, 1.0)
ALIGN_RATES = (0.01, 0.03, 0.1)
SEEDS = [101, 102]
STARTS = {"fedavg": False, "pretrain": True}  # variant → does it start from pretrained weights
ALIGNED = {"align": "fedavg", "full": "pretrain"}  # variant → the start that it aligns
OUT = Path(__file__).with_name("demo_search.json")


def scores(variants: dict[str, dict[str, Any]], stage: str, session: Session) -> dict[str, float]:
    """Each variant's All on the validation split after `stage`, the mean over the search's seeds."""
    overlay = {"name": "demo-search", "eval": {"split": "validation"}, "pretrain": {"probe": {"enabled": False}}}
    demo = dataclasses.replace(load_config(["configs/demo.yaml"]), variants={}, seeds=tuple(SEEDS))
    search = dataclasses.replace(overlaid(demo, overlay), variants=variants)
    execute(search, session)
    found: dict[str, list[float]] = {name: [] for name in variants}
    for child in children(search):
        path = RunFolder.of(child).stage(stage) / "evaluation.json"
        found[child.variant].append(files.read_json(path)["all"])
    return {name: round(statistics.mean(values), 2) for name, values in found.items()}


def main() -> None:
    """Search, print the grid, write the choices."""
    session = Session(TerminalReporter())
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        starts = {
            f"{name}-{lr}": {"pretrain": {"enabled": pretrained}, "align": {"enabled": False}, "federate": {"lr": lr}}
            for name, pretrained in STARTS.items()
            for lr in FEDERATE_RATES
        }
        grid = scores(starts, "federate", session)
        rates = {name: max(FEDERATE_RATES, key=lambda lr: grid[f"{name}-{lr}"]) for name in STARTS}
        aligned = {
            f"{name}-{lr}": {
                "pretrain": {"enabled": STARTS[start]},
                "federate": {"lr": rates[start]},
                "align": {"lr": lr},
            }
            for name, start in ALIGNED.items()
            for lr in ALIGN_RATES
        }
        grid |= scores(aligned, "align", session)
    chosen: dict[str, dict[str, float]] = {name: {"federate.lr": rates[name]} for name in STARTS}
    for name, start in ALIGNED.items():
        best = max(ALIGN_RATES, key=lambda lr: grid[f"{name}-{lr}"])
        chosen[name] = {"federate.lr": rates[start], "align.lr": best}
    files.write_json(OUT, {"seeds": SEEDS, "split": "validation", "all": grid, "chosen": chosen})
    table = Table("variant-rate", "All on validation, %", title="demo search")
    for name, value in grid.items():
        table.add_row(name, f"{value:.1f}")
    Console().print(table)
    Console().print(chosen)


if __name__ == "__main__":
    main()
