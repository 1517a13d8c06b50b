"""Settings of what is trained: the model, and stages 1b, 2 and 3.

Marks in the comments: [C] the official code of CReFF or CLIP2FL, [D] a decision of this project (no source says it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedscale.config.checks import require


@dataclass(frozen=True)
class ModelConfig:
    """The compact model f that clients train."""

    name: Literal["resnet8", "resnet50"] = "resnet8"
    width: int = 64  # channels of ResNet-8's stem; 64 is the paper's

    def __post_init__(self) -> None:
        require(self.width >= 1, "model.width", self.width, "1 or more channels")


@dataclass(frozen=True)
class AlphaConfig:
    """α(t), the student's weight in h = α·h_f + (1 − α)·h_g; rises over training (METHOD.md, stage 1) [D]."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    start: float = 0.0
    end: float = 1.0  # `constant` uses this value throughout

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"pretrain.alpha.{name}", value, "a value from 0 to 1")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the language model's linear layers (peft)."""

    rank: int = 8
    scale: float = 16.0  # lora_alpha
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.rank >= 1, "pretrain.lora.rank", self.rank, "1 or more")


@dataclass(frozen=True)
class ProbeConfig:
    """The data-fraction figure: pretrained against random weights on a few labelled training images, centrally."""

    enabled: bool = True
    fractions: tuple[float, ...] = (0.01, 0.1)  # of the training images, the same share of each class, at least one
    steps: int = 100
    batch_size: int = 32
    lr: float = 0.02

    def __post_init__(self) -> None:
        require(all(0 < f <= 1 for f in self.fractions), "pretrain.probe.fractions", self.fractions, "shares in (0, 1]")


@dataclass(frozen=True)
class PretrainConfig:
    """Stage 1b: Dynamic Weighted Distillation of f beside the frozen CLIP, in front of a language model."""

    enabled: bool = True
    epochs: int = 5
    batch_size: int = 64
    lr: float = 1e-3  # AdamW, cosine decay to 0 after the warm-up
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of all steps
    alpha: AlphaConfig = field(default_factory=AlphaConfig)
    feature_weight: float = 1.0  # λ_feat of 1 − cos(h_f, stop_grad(h_g)) [D]
    contrastive_weight: float = 0.0  # λ_con of the contrastive loss against CLIP's frozen text tower [D]
    language_model: Literal["frozen", "lora", "full"] = "lora"  # [D]
    lora: LoraConfig = field(default_factory=LoraConfig)
    visual_tokens: int = 4  # tokens that a projector makes of one image [D]
    max_text_tokens: int = 128  # prompt and answer
    augment: Literal["none", "flip", "crop_flip"] = "crop_flip"
    mixed_precision: Literal["no", "bf16"] = "no"
    clip_grad_norm: float = 1.0
    save_every: int = 500  # steps between checkpoints
    teacher: Literal["live", "stored"] = "live"  # `stored` reads CLIP's embeddings that caption.features kept
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "visual_tokens", "max_text_tokens", "save_every"):
            require(getattr(self, name) >= 1, f"pretrain.{name}", getattr(self, name), "1 or more")
        require(self.lr > 0, "pretrain.lr", self.lr, "above 0")
        require(0 <= self.warmup < 1, "pretrain.warmup", self.warmup, "a share from 0 to below 1")
        for name in ("feature_weight", "contrastive_weight", "weight_decay"):
            require(getattr(self, name) >= 0, f"pretrain.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class FederateConfig:
    """Stage 2: federated finetuning. The defaults are the published protocol [C]."""

    method: Literal["fedavg"] = "fedavg"
    backend: Literal["loop"] = "loop"
    rounds: int = 200
    clients_per_round: int = 8
    local_epochs: int = 10
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    augment: Literal["none", "flip", "crop_flip"] = "crop_flip"
    checkpoint_every: int = 1  # rounds

    def __post_init__(self) -> None:
        for name in ("rounds", "clients_per_round", "local_epochs", "batch_size", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"federate.{name}", getattr(self, name), "1 or more")
        require(self.lr > 0, "federate.lr", self.lr, "above 0")
        require(0 <= self.momentum < 1, "federate.momentum", self.momentum, "a value from 0 to below 1")
        require(self.weight_decay >= 0, "federate.weight_decay", self.weight_decay, "0 or more")


@dataclass(frozen=True)
class AlignConfig:
    """Stage 3: L_align = L_ce(y, p) + β·T²·KL(q‖p) on a small class-balanced set of the captioned pool."""

    enabled: bool = True
    teacher: Literal["clip", "mllm"] = "clip"  # whose distribution over the classes is q [D]
    labels: Literal["teacher", "keyword"] = "teacher"  # what y is [D]
    images_per_class: int = 50
    epochs: int = 5
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    beta: float = 1.0  # [C: CLIP2FL]
    temperature: float = 3.0  # of p and q in the KL term [C: CLIP2FL]
    logit_scale: float = 100.0  # q = softmax(logit_scale · cosine) of the `clip` teacher [D]
    augment: Literal["none", "flip", "crop_flip"] = "crop_flip"

    def __post_init__(self) -> None:
        for name in ("images_per_class", "epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"align.{name}", getattr(self, name), "1 or more")
        for name in ("lr", "temperature", "logit_scale"):
            require(getattr(self, name) > 0, f"align.{name}", getattr(self, name), "above 0")
        require(0 <= self.momentum < 1, "align.momentum", self.momentum, "a value from 0 to below 1")
        require(self.beta >= 0, "align.beta", self.beta, "0 or more")
