"""What a run folder holds, typed. Accuracies are in percent, times in seconds; an absent part is None or empty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS = ("all", "many", "medium", "few")
GROUPS = ("many", "medium", "few")


@dataclass(frozen=True)
class Fairness:
    """The spread of the accuracy over the clients, each judged on its own distribution of classes."""

    clients: int
    mean: float
    variance: float  # squared percent
    worst_decile: float  # mean of the worst tenth


@dataclass(frozen=True)
class Cost:
    """A round of a whole cohort."""

    clients: float
    bytes_down: float
    bytes_up: float
    flops: float


@dataclass(frozen=True)
class Evaluation:
    """An evaluation.json. `confusion[i][j]` counts images of class i that were taken for class j."""

    split: str
    scores: dict[str, float | None]  # by METRICS; None for a group without classes
    per_class: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    groups: dict[str, tuple[int, ...]]
    ece: float | None = None  # expected calibration error, percent; older runs have none
    fairness: Fairness | None = None

    @property
    def balanced_error(self) -> float:
        """Percent, the mean over the classes."""
        return 100.0 - sum(self.per_class) / len(self.per_class)

    @property
    def head_to_tail(self) -> list[int]:
        """Class indices by training images, largest first."""
        return sorted(range(len(self.train_counts)), key=lambda index: (-self.train_counts[index], index))

    def group_of(self, index: int) -> str:
        """Which of GROUPS a class is in; empty when in none."""
        return next((name for name in GROUPS if index in self.groups.get(name, ())), "")


@dataclass(frozen=True)
class ProbePoint:
    """One share of the labelled training images: accuracy from random and from pretrained weights."""

    fraction: float
    images: int
    scratch: float
    pretrained: float


@dataclass(frozen=True)
class Example:
    """One captioned pool image, without the image."""

    key: str
    keyword: str
    texts: dict[str, str]


@dataclass(frozen=True)
class Captions:
    """What the captioning stage made of the open pool."""

    engine: str
    model: str
    images: int
    ok: int
    not_ok: dict[str, int]  # by status, those above 0
    naming_accuracy: float | None  # percent of the ok rows whose conversation text names the keyword
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Run:
    """One finished run folder."""

    path: Path
    variant: str
    seed: int
    config: dict[str, Any]
    environment: dict[str, Any]
    rounds: tuple[dict[str, Any], ...]  # federate/metrics.jsonl
    federated: Evaluation
    aligned: Evaluation | None
    probe: tuple[ProbePoint, ...]
    captions: Captions | None
    seconds: dict[str, float]  # by stage, of the stages that this run's config uses
    agreement: float | None  # percent of the alignment set where the teacher's label is the crawl's keyword
    notes: tuple[str, ...]  # that the stages recorded in done.json
    cost: Cost | None = None  # older runs have none

    @property
    def final(self) -> Evaluation:
        """After alignment where the run has that stage, else after the last round."""
        return self.aligned or self.federated

    @property
    def method(self) -> str:
        return str(self.config.get("federate", {}).get("method", ""))


@dataclass(frozen=True)
class Candidate:
    """Values that were tried for a method; `score` in percent, None where it diverged or was not run."""

    values: str
    score: float | None
    state: str
    chosen: bool


@dataclass(frozen=True)
class Tuning:
    """A sweep's tuning: what all candidates were judged by (`terms`), how many a method may have, and those tried."""

    folder: str
    terms: str
    budget: int
    methods: dict[str, tuple[Candidate, ...]]


@dataclass(frozen=True)
class Collection:
    """The runs of one report, in the order of the variants, and what was left out with the reason."""

    title: str
    runs: tuple[Run, ...]
    left_out: tuple[str, ...]
    tunings: tuple[Tuning, ...] = ()
