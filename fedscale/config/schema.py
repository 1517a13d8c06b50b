"""Every setting, with its unit, range and default. A value out of range raises UserError from `__post_init__`.

This module is the whole: it gathers the sections, and everything else imports them from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedscale.config.caption import (
    CaptionConfig,
    FeaturesConfig,
    OpenAIConfig,
    PromptsConfig,
    VllmConfig,
)
from fedscale.config.checks import TEXT_KINDS, require
from fedscale.config.data import (
    DataConfig,
    OpenPoolConfig,
    PartitionConfig,
    RecipeConfig,
    ShapesConfig,
)
from fedscale.config.teachers import (
    ClipConfig,
    LmConfig,
    MllmConfig,
    OfflineConfig,
    TeachersConfig,
)
from fedscale.config.training import (
    AggregateConfig,
    AlignConfig,
    AlphaConfig,
    FederateConfig,
    LoraConfig,
    ModelConfig,
    PretrainConfig,
    ProbeConfig,
)

__all__ = [
    "TEXT_KINDS",
    "AggregateConfig",
    "AlignConfig",
    "AlphaConfig",
    "CaptionConfig",
    "ClipConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "FeaturesConfig",
    "FederateConfig",
    "GroupsConfig",
    "LmConfig",
    "LoraConfig",
    "MllmConfig",
    "ModelConfig",
    "OfflineConfig",
    "OpenAIConfig",
    "OpenPoolConfig",
    "PartitionConfig",
    "PretrainConfig",
    "ProbeConfig",
    "PromptsConfig",
    "RecipeConfig",
    "ShapesConfig",
    "TeachersConfig",
    "VllmConfig",
]


@dataclass(frozen=True)
class GroupsConfig:
    """Many / medium / few: by training images a class (`count`), or the first / last classes by count (`rank`)."""

    kind: Literal["count", "rank"] = "rank"
    many_over: int = 100  # count: many > 100 images
    few_under: int = 20  # count: few < 20 images
    many_classes: int = 3  # rank: the 3 largest classes are many
    few_classes: int = 3  # rank: the 3 smallest are few

    def __post_init__(self) -> None:
        require(
            self.few_under <= self.many_over, "eval.groups.few_under", self.few_under, "at most eval.groups.many_over"
        )
        for name in ("many_classes", "few_classes"):
            require(getattr(self, name) >= 1, f"eval.groups.{name}", getattr(self, name), "1 or more")


@dataclass(frozen=True)
class EvalConfig:
    """How models are judged."""

    split: Literal["test", "validation"] = "test"  # choices are made on `validation` alone
    every: int = 1  # rounds
    batch_size: int = 500
    groups: GroupsConfig = field(default_factory=GroupsConfig)

    def __post_init__(self) -> None:
        require(self.every >= 1, "eval.every", self.every, "1 or more")
        require(self.batch_size >= 1, "eval.batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True)
class Config:
    """One experiment. `variants` (name → overlay) and `seeds` make `run` execute one child run for each pair."""

    name: str = ""  # of the run folder; defaults to the first config file's name
    out: str = "runs"  # the folder that run folders lie in
    seed: int = 7  # of all that is drawn at random
    seeds: tuple[int, ...] = ()  # of the child runs; none = `seed` alone
    variants: dict[str, Any] = field(default_factory=dict)  # name → keys to lay over the config
    variant: str = ""  # only this variant; in a child run's saved config, the one that it is
    jobs: int = 1  # child stages at once, a process each
    threads: int = 0  # CPU threads a process; 0 = cores / jobs, or / the ranks of the host
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    launch: str = ""  # an accelerate YAML or DeepSpeed JSON: the strategy of stages 1b and 3, where no launcher says it
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    federate: FederateConfig = field(default_factory=FederateConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        inside = ".." not in Path(self.name).parts and not Path(self.name).is_absolute()
        require(inside, "name", self.name, "the name of a folder below out=")
        require(self.jobs >= 1, "jobs", self.jobs, "1 or more")
        require(self.threads >= 0, "threads", self.threads, "0 (cores / jobs) or more")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", list(self.seeds), "different seeds")
        per_round, clients = self.federate.clients_per_round, self.data.partition.clients
        require(
            per_round <= clients, "federate.clients_per_round", per_round, f"at most data.partition.clients ({clients})"
        )
