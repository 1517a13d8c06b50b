"""Settings of a sweep: methods × axes × seeds over one base config, and the one tuning grid of all methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedscale.config.checks import require
from fedscale.config.convert import build
from fedscale.config.load import load_config, merged_tree
from fedscale.config.schema import Config
from fedscale.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")  # what a folder may be called after
OWN_KEYS = ("name", "out", "seed", "seeds", "variant", "variants", "jobs")  # the sweep's business, no axis
TUNED_AT = ("federate.rounds", "eval.split")  # what tuning sets itself

Values = dict[str, tuple[Any, ...]]  # dotted key → its values


@dataclass(frozen=True)
class TuneConfig:
    """One grid and one budget for every method. Candidates are judged on the validation split, never on the test's.

    A method's candidates are all combinations of the values of `grid` and of its own `options`; what of them changes
    nothing of a method (align.lr where it does not align) is no candidate of its own.
    """

    grid: dict[str, Any] = field(default_factory=dict)  # dotted key → values, for every method
    options: dict[str, Any] = field(default_factory=dict)  # method → dotted key → values, beside the grid
    budget: int = 9  # candidates that a method may have; more are an error, none is left out silently
    rounds: int = 20  # of a candidate
    seed: int = 1000  # of every candidate: one, and best none of the final runs'
    metric: Literal["all", "many", "medium", "few"] = "all"  # highest wins; of equal ones the first
    at: dict[str, Any] = field(default_factory=dict)  # axis → its value while tuning; else the axis's first [D]

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", dotted(self.at))
        object.__setattr__(self, "grid", values_by_key(self.grid, "tune.grid", TUNED_AT))
        options = {
            method: values_by_key(given, f"tune.options.{method}", TUNED_AT) for method, given in self.options.items()
        }
        object.__setattr__(self, "options", options)
        for name in ("budget", "rounds"):
            require(getattr(self, name) >= 1, f"tune.{name}", getattr(self, name), "1 or more")


@dataclass(frozen=True)
class SlurmConfig:
    """How the sweep's array is submitted."""

    options: tuple[str, ...] = ("--time=04:00:00",)  # of sbatch: partition, GPUs, time

    def __post_init__(self) -> None:
        for option in self.options:
            require(option.startswith("-") and "\n" not in option, "slurm.options", option, "--option=value of sbatch")


@dataclass(frozen=True)
class SweepConfig:
    """A sweep. `methods` is a list of the base's variants, or name → overlay (keys, a YAML file, or a list of both)."""

    name: str = ""  # of the folder under `out`; defaults to the sweep file's name
    base: tuple[str, ...] = ()  # config files, merged in order
    methods: Any = ()
    axes: dict[str, Any] = field(default_factory=dict)  # dotted key → values; a method may differ from a single one
    seeds: tuple[int, ...] = (7,)
    tune: TuneConfig = field(default_factory=TuneConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    heartbeat: float = 5.0  # seconds between a worker's signs of life; one is given up after six missed ones

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.name)), "name", self.name, "letters, digits and . _ + -")
        require(bool(self.base), "base", list(self.base), "one config file or more")
        kind = isinstance(self.methods, dict | list | tuple)
        require(kind and bool(self.methods), "methods", self.methods, "variants of the base, or name: overlay")
        for method in self.methods:
            named = isinstance(method, str) and bool(NAME.fullmatch(method))
            require(named, "methods", method, "a name of letters, digits and . _ + -")
        require(len(set(self.methods)) == len(self.methods), "methods", list(self.methods), "different ones")
        object.__setattr__(self, "axes", values_by_key(self.axes, "axes", OWN_KEYS))
        require(bool(self.seeds), "seeds", list(self.seeds), "one seed or more")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", list(self.seeds), "different seeds")
        require(self.heartbeat > 0, "heartbeat", self.heartbeat, "above 0 seconds")
        for tuned in (self.tune.grid, *self.tune.options.values()):
            for key in tuned:
                require(key not in self.axes, "tune", key, "another key: this one is an axis")
        for method in self.tune.options:
            require(method in self.methods, "tune.options", method, f"one of the methods ({', '.join(self.methods)})")
        for key, value in self.tune.at.items():
            require(key in self.axes, "tune.at", key, f"one of the axes ({', '.join(self.axes)})")
            require(value in self.axes[key], f"tune.at.{key}", value, f"one of {list(self.axes[key])}")


def dotted(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Sections within sections as dotted keys."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{path}.{name}" if path else str(name)
        found.update(dotted(value, key) if isinstance(value, dict) and value else {key: value})
    return found


def values_by_key(tree: dict[str, Any], where: str, refused: Sequence[str] = ()) -> Values:
    """Dotted keys with their values, also of nested sections. Raises UserError for what is no list of values."""
    found: Values = {}
    for key, value in dotted(tree).items():
        full = f"{where}.{key}"
        require(isinstance(value, list | tuple) and bool(value), full, value, f"a list of values, e.g. {full}=[…]")
        require(key not in refused, where, key, "another key: this one is set by the sweep itself")
        require(len({repr(v) for v in value}) == len(value), full, list(value), "different values")
        found[key] = tuple(value)
    return found


def load_sweep_config(words: Sequence[str]) -> tuple[SweepConfig, Config]:
    """The sweep that `SWEEP.yaml [key=value...]` describes, and its base config.

    A word whose first part is a key of the sweep's is the sweep's, `methods=[…]` chooses among its methods; every other
    one is the base config's. Raises UserError for a missing file, an unknown key, a value of the wrong type or range.
    """
    own = {*SweepConfig.__dataclass_fields__}
    for_base = [word for word in words if "=" in word and word.partition("=")[0].partition(".")[0] not in own]
    choices = [word for word in words if word.startswith("methods=")]
    files, tree = merged_tree([word for word in words if word not in {*for_base, *choices}])
    if not files:
        raise UserError("no sweep given: name one, e.g. configs/sweeps/demo_methods.yaml")
    for word in choices:
        _choose(tree, word)
    config = build(SweepConfig, tree, "")
    return config, load_config([*config.base, *for_base])


def _choose(tree: dict[str, Any], word: str) -> None:
    """Keep the methods that the word names, and what is tuned of them."""
    names, held = merged_tree([word])[1]["methods"], tree.get("methods") or {}
    chosen = names if isinstance(names, list) else [names]
    for name in chosen:
        require(name in held or not isinstance(held, dict), "methods", name, f"one of {', '.join(held)}")
    tree["methods"] = {name: held[name] for name in chosen} if isinstance(held, dict) else chosen
    options = (tree.get("tune") or {}).get("options") or {}
    for name in [name for name in options if name not in chosen]:
        del options[name]
