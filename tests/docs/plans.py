"""The plans of plans.yaml, which says what each field means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_FILE: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SWAPS = {"CONFIG": "small.yaml", "CONFIG...": "small.yaml", "data.source=DIR": "data.source=cifar"}


@dataclass(frozen=True)
class Plan:
    """How one command is carried out. At most one of `launched`, `bench`, `make` and `test` says by whom."""

    launched: bool = False
    bench: list[str] | None = None
    make: str = ""
    test: str = ""
    form: str = ""
    more: list[str] = field(default_factory=list)
    swaps: dict[str, str] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)
    leaves: str = ""
    whole: dict[str, str] = field(default_factory=dict)
    copied: bool = False
    skip: str = ""

    def __post_init__(self) -> None:
        by = [self.launched, self.bench is not None, bool(self.make), bool(self.test)]
        assert sum(by) <= 1, self


def expanded(words: Iterable[str]) -> Iterator[str]:
    """The words, with those that a word in capitals stands for."""
    for word in words:
        yield from _FILE["words"].get(word, [word])


PLANS = {text: Plan(**fields) for text, fields in _FILE["commands"].items()}
