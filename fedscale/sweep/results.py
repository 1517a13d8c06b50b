"""What came out of a sweep: the tuning, and the report of all finished final runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fedscale.progress import Reporter
from fedscale.runs import RunFolder
from fedscale.sweep.plan import Sweep
from fedscale.sweep.tuning import chosen, record


def describe(sweep: Sweep) -> Path:
    """Write the sweep's folder's config.yaml, whose variants are the final runs; returns the folder, to be reported."""
    variants: dict[str, Any] = {}
    for method in sweep.methods:
        values = chosen(sweep, method) or {}
        for point in sweep.points:
            variants[sweep.label(method, point)] = sweep.overlay(method, point | values)
    config = replace(sweep.base, seeds=sweep.config.seeds, variants=variants)
    RunFolder(sweep.folder).describe(config)
    return sweep.folder


def report(sweep: Sweep, reporter: Reporter) -> list[dict[str, Any]]:
    """Write tuning.json and report/ of the sweep's folder; returns the summary's rows.

    Raises UserError when no final run is finished.
    """
    from fedscale.report import default_out
    from fedscale.report import report as write_report

    record(sweep)
    folder = describe(sweep)
    return write_report([folder], default_out([folder]), reporter)
