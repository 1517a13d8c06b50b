"""Sweeps: methods × axes × seeds over one base config, tuned by one declared grid, as a resumable list of runs.

`open_sweep` reads a sweep file, `runs` yields its runs in their order, `execute` carries them out, `report` compares.
"""

from fedscale.sweep.plan import Sweep, SweepRun, open_sweep
from fedscale.sweep.results import report
from fedscale.sweep.tuning import runs
from fedscale.sweep.work import execute, execute_one

__all__ = ["Sweep", "SweepRun", "execute", "execute_one", "open_sweep", "report", "runs"]
