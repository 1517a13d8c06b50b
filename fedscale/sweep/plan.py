"""A sweep as its list of runs: the tuning candidates of every method, then methods × axes × seeds.

The list is a function of the sweep file alone: run N is the same on every machine, at every time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import product
from pathlib import Path
from typing import Any, Literal

from fedscale import files
from fedscale.config import Config, overlaid
from fedscale.config.load import laid_over, merged_tree
from fedscale.config.sweep import SweepConfig, Values, load_sweep_config
from fedscale.errors import UserError
from fedscale.runs import stage_inputs
from fedscale.stages import needed

SHORT = {"data.imbalance_factor": "if", "data.partition.alpha": "alpha", "data.partition.clients": "clients"}

Point = dict[str, Any]  # dotted key → its value


@dataclass(frozen=True)
class SweepRun:
    """Run `number` of a sweep: a candidate of the tuning, or one of the final runs.

    `point` is its place on the axes, `values` what is tuned: the candidate's, or the chosen ones. `after` are the
    candidates' numbers that a final run waits for; `config` lacks the chosen values until all of them are finished.
    """

    number: int
    kind: Literal["tune", "final"]
    method: str
    point: Point
    values: Point
    config: Config
    after: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder, below the sweep's."""
        return f"{self.config.variant}-s{self.config.seed}"


class Sweep:
    """A sweep file, unfolded.

    Raises UserError for an overlay, axis or option that does not fit the base config, and for a grid over its budget.
    """

    def __init__(self, config: SweepConfig, base: Config) -> None:
        self.config = config
        self.base = replace(base, name=config.name, variants={}, variant="", seeds=())
        self.folder = Path(base.out) / config.name
        for key, values in config.axes.items():
            for value in values:
                overlaid(self.base, nested({key: value}), f"axes.{key}")
        self._overlays = {name: _overlay_of(name, config.methods, base) for name in config.methods}
        single = {key: values[0] for key, values in config.axes.items() if len(values) == 1}
        self.methods = {name: self._laid(name, single, f"methods.{name}") for name in config.methods}
        self._names_of_axes = _short_names([key for key, values in config.axes.items() if len(values) > 1])
        self._final: dict[str, Config] = {}
        self.choices: dict[str, Point] = {}  # by method, once its tuning is finished
        self.points: list[Point] = [
            dict(zip(config.axes, values, strict=True)) for values in product(*config.axes.values())
        ]
        # Each method's combinations of values to try; a single, perhaps empty one where nothing is to be tuned.
        self.candidates = {method: self._candidates(method) for method in self.methods}

    @cached_property
    def tuning(self) -> list[SweepRun]:
        """The candidates' runs. A method with one candidate needs none: there is nothing to choose."""
        tried = [(method, values) for method, found in self.candidates.items() if len(found) > 1 for values in found]
        return [
            SweepRun(number, "tune", method, self._tuned_at, values, self._candidate(method, values))
            for number, (method, values) in enumerate(tried)
        ]

    def overlay(self, method: str, values: Point) -> dict[str, Any]:
        """The method's keys over those of the axes with a single value, and the other values over both."""
        single = {key: value for key, value in values.items() if len(self.config.axes.get(key, ())) == 1}
        below = laid_over(nested(single), self._overlays[method])
        return laid_over(below, nested({key: value for key, value in values.items() if key not in single}))

    def final(self, method: str, point: Point, values: Point, seed: int) -> Config:
        """The config of a final run with these chosen values."""
        label, chosen = self.label(method, point), point | values
        key = repr((method, chosen))
        if key not in self._final:  # it takes milliseconds, and the list is made anew after every run
            self._final[key] = replace(self._laid(method, chosen, f"methods.{method}"), variant=label)
        return replace(self._final[key], seed=seed)

    def label(self, method: str, point: Point) -> str:
        """The variant's name: the method, and the values of the axes that have several."""
        return "-".join([method, *(f"{short}{_written(point[key])}" for key, short in self._names_of_axes.items())])

    def _laid(self, method: str, values: Point, where: str) -> Config:
        return overlaid(self.base, self.overlay(method, values), where)

    @property
    def _tuned_at(self) -> Point:
        tune = self.config.tune
        return {key: tune.at.get(key, values[0]) for key, values in self.config.axes.items()}

    def _candidate(self, method: str, values: Point) -> Config:
        tune = self.config.tune
        found = self._laid(method, self._tuned_at | values, f"tune: {method}")
        rounds = min(tune.rounds, found.federate.rounds)  # which may be 0
        found = overlaid(found, nested({"federate.rounds": rounds, "eval.split": "validation"}), f"tune: {method}")
        names = _short_names([*values])
        label = "-".join([method, *(f"{names[key]}{_written(value)}" for key, value in values.items())])
        return replace(found, variant=f"tune/{label}", seed=tune.seed)

    def _candidates(self, method: str) -> list[Point]:
        tune = self.config.tune
        options: Values = tune.options.get(method, {})
        for key, values in options.items():
            seen = {self._result(method, {key: value}, f"tune.options.{method}") for value in values}
            if len(seen) < len(values):
                raise UserError(f"tune.options.{method}.{key}: changes nothing of {method}; take it out")
        grid = tune.grid | options
        found: dict[str, Point] = {}
        for values in product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            found.setdefault(self._result(method, point, "tune.grid"), point)
        if len(found) > tune.budget:
            raise UserError(
                f"tune: {method} has {len(found)} candidates, above tune.budget={tune.budget}; take values out of "
                f"tune.grid or tune.options.{method}, or raise the budget of all methods"
            )
        return list(found.values())

    def _result(self, method: str, values: Point, where: str) -> str:
        """What determines the result of the method with these values, hashed."""
        config = self._laid(method, self._tuned_at | values, where)
        return files.fingerprint(stage_inputs(config, needed(config)[-1]))


def open_sweep(words: Sequence[str]) -> Sweep:
    """The sweep of `SWEEP.yaml [key=value...]`, as on the command line. Raises UserError like `load_sweep_config`."""
    return Sweep(*load_sweep_config(words))


def _overlay_of(name: str, methods: Any, base: Config) -> dict[str, Any]:
    """A method's keys to lay over the base: those of its variant, or of the overlays that the sweep gives it."""
    where = f"methods.{name}"
    if not isinstance(methods, dict):
        if name not in base.variants:
            known = ", ".join(base.variants) or "none"
            raise UserError(f"{where}: no variant of the base config ({known}); write methods as `name: overlay`")
        return dict(base.variants[name] or {})
    given = methods[name]
    trees = []
    for part in given if isinstance(given, list) else [given]:
        if isinstance(part, str):
            tree = merged_tree([part])[1]
            for key in ("name", "variant", "variants"):  # the file's own, which name no run here
                tree.pop(key, None)
            trees.append(tree)
        elif part is None or isinstance(part, dict):
            trees.append(part or {})
        else:
            raise UserError(f"{where}={part}: expected keys and values, a YAML file, or a list of both")
    return reduce(laid_over, trees)


def nested(values: Point) -> dict[str, Any]:
    """Dotted keys as sections within sections."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = list(value) if isinstance(value, tuple) else value
    return tree


def _short_names(keys: list[str]) -> dict[str, str]:
    """Each key's name within a run's: its last part, or all of it where two keys end alike."""
    short = {key: SHORT.get(key, key.rpartition(".")[2]) for key in keys}
    return {key: name if [*short.values()].count(name) == 1 else key for key, name in short.items()}


def _written(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")
