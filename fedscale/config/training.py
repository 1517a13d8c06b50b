"""Settings of what is trained: the model, and stages 1b, 2 and 3.

Marks in the comments: [C] the official code of CReFF or CLIP2FL, [D] a decision of this project (no source says it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fedscale import plugins
from fedscale.config.checks import require
from fedscale.config.methods import resolved_options

MODEL_KEY, MODEL_GROUP = "model.name", "fedscale.models"  # entry points of other packages
STUDENTS = ("resnet8", "resnet50", "linear", "mlp", "lenet", "simple_cnn")
TIMM = "timm:"  # in front of a name of timm's


@dataclass(frozen=True)
class ModelConfig:
    """The compact model f that clients train."""

    name: str = "resnet8"  # one of STUDENTS, timm:NAME (no weights), an installed one, or package.module:Name
    width: int = 64  # channels of ResNet-8's stem; 64 is the paper's
    norm: Literal["batch", "group"] = "batch"  # of ResNet-8; with `group` images of a batch do not touch one another
    projection: int = 0  # width of a linear layer without activation before the classifier; 0 = none [C: CLIP2FL, 512]

    def __post_init__(self) -> None:
        require(self.name != TIMM, MODEL_KEY, self.name, f"{TIMM}NAME, the name of one of timm's models")
        if self.name not in STUDENTS:
            plugins.target_of(self.name, MODEL_KEY, MODEL_GROUP, (*STUDENTS, f"{TIMM}NAME"))
        require(self.width >= 1, "model.width", self.width, "1 or more channels")
        require(self.projection >= 0, "model.projection", self.projection, "a width, or 0 for none")
        fits = self.norm == "batch" or self.name == "resnet8"
        require(fits, "model.norm", self.norm, f"batch: {self.name} has its own norms, `group` is for resnet8 alone")


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
        require(self.scale > 0, "pretrain.lora.scale", self.scale, "above 0")
        require(0 <= self.dropout < 1, "pretrain.lora.dropout", self.dropout, "a share from 0 to below 1")


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
        for name in ("steps", "batch_size"):
            require(getattr(self, name) >= 1, f"pretrain.probe.{name}", getattr(self, name), "1 or more")
        require(self.lr > 0, "pretrain.probe.lr", self.lr, "above 0")


@dataclass(frozen=True)
class PretrainConfig:
    """Stage 1b: Dynamic Weighted Distillation of f beside the frozen CLIP, in front of a language model.

    The objective `keyword` is a control row: f and its classifier on the same images for the same steps, by
    cross-entropy to the class that the crawl's keyword names; a keyword that names none leaves its image out [D].
    """

    enabled: bool = True
    objective: Literal["distillation", "keyword"] = "distillation"
    epochs: int = 5
    batch_size: int = 64  # images a step, over all ranks
    accumulation: int = 1  # backward passes that a step's images are cut into
    streams: int = 8  # shuffled streams that a step takes equal shares of; ranks and workers divide them up [D]
    shuffle_buffer: int = 256  # pairs, still encoded, that each stream shuffles through; 1 = shards as they are [D]
    workers: int = 0  # processes of each rank that read and decode; 0 = the rank itself
    draft_decode: bool = True  # large JPEGs are decoded at 1/2, 1/4 or 1/8 of their sides; with teacher=live alone [D]
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
    clip_grad_norm: float = 1.0  # 0 = no clipping
    save_every: int = 500  # steps between checkpoints
    activation_checkpointing: bool = False  # the language model's activations are computed again, not kept
    timeout: float = 600.0  # seconds that ranks wait for one another
    tensorboard: bool = False  # metrics also as event files in pretrain/tensorboard
    teacher: Literal["live", "stored"] = "live"  # `stored` reads CLIP's embeddings that caption.features kept
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "accumulation",
            "streams",
            "shuffle_buffer",
            "visual_tokens",
            "max_text_tokens",
            "save_every",
        ):
            require(getattr(self, name) >= 1, f"pretrain.{name}", getattr(self, name), "1 or more")
        require(
            self.batch_size >= self.streams * self.accumulation,
            "pretrain.batch_size",
            self.batch_size,
            f"pretrain.streams={self.streams} times pretrain.accumulation={self.accumulation} images or more; raise it "
            "or lower these",
        )
        for name in ("lr", "timeout"):
            require(getattr(self, name) > 0, f"pretrain.{name}", getattr(self, name), "above 0")
        require(0 <= self.warmup < 1, "pretrain.warmup", self.warmup, "a share from 0 to below 1")
        for name in ("feature_weight", "contrastive_weight", "weight_decay", "workers", "clip_grad_norm"):
            require(getattr(self, name) >= 0, f"pretrain.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class AggregateConfig:
    """How the cohort's models are averaged."""

    dtype: Literal["fp32", "fp64"] = "fp64"  # of the sum
    exact: bool = False  # fixed-point int64: bitwise the same for any number of ranks
    fraction_bits: int = 40  # exact: resolution 2^-bits of a weighted value, whose size is below 2^(51 - bits)
    clip_norm: float = 0.0  # L2 norm that a client's update is scaled down to; 0 = no clipping

    def __post_init__(self) -> None:
        require(
            1 <= self.fraction_bits <= 50,
            "federate.aggregate.fraction_bits",
            self.fraction_bits,
            "a value from 1 to 50",
        )
        require(self.clip_norm >= 0, "federate.aggregate.clip_norm", self.clip_norm, "0 (no clipping) or more")


@dataclass(frozen=True)
class FederateConfig:
    """Stage 2: federated finetuning. The defaults are the published protocol [C]."""

    method: str = "fedavg"  # a built-in one (`fedscale methods`), an installed one, or package.module:Name
    options: dict[str, Any] = field(default_factory=dict)  # of the method
    rounds: int = 200  # 0: the starting model is evaluated and handed on as it is
    clients_per_round: int = 8
    local_epochs: int = 10
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    augment: Literal["none", "flip", "crop_flip"] = "crop_flip"
    aggregate: AggregateConfig = field(default_factory=AggregateConfig)
    backend: Literal["auto", "loop", "batched", "graph"] = "auto"
    lanes: int = 0  # clients trained side by side; 0 = chosen with the backend
    even_groups: bool = False  # no group of lanes has more steps than the largest client: for ranks that would wait
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # of the clients' training on a GPU
    shard: int = 1  # processes that share one client's model (FSDP2)
    store: Literal["auto", "resident", "mapped"] = "auto"  # where images are during rounds: on the device, or on disk
    memory: float = 0.5  # share of the free memory that lanes and a resident store may take
    timeout: float = 600.0  # seconds that ranks wait for one another
    checkpoint_every: int = 1  # rounds
    tensorboard: bool = False  # metrics also as event files in federate/tensorboard

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", resolved_options(self.method, self.options))
        require(self.rounds >= 0, "federate.rounds", self.rounds, "0 or more")
        for name in ("clients_per_round", "local_epochs", "batch_size", "shard", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"federate.{name}", getattr(self, name), "1 or more")
        for name in ("lr", "timeout"):
            require(getattr(self, name) > 0, f"federate.{name}", getattr(self, name), "above 0")
        require(0 <= self.momentum < 1, "federate.momentum", self.momentum, "a value from 0 to below 1")
        for name in ("weight_decay", "lanes"):
            require(getattr(self, name) >= 0, f"federate.{name}", getattr(self, name), "0 or more")
        require(0 < self.memory <= 1, "federate.memory", self.memory, "a share above 0, up to 1")
        if self.aggregate.exact:
            require(self.backend != "auto", "federate.backend", "auto", "loop, batched or graph with aggregate.exact")
            pinned = self.backend == "loop" or self.lanes >= 1
            require(pinned, "federate.lanes", self.lanes, "a number of lanes with aggregate.exact")
        if self.shard > 1:
            require(self.backend in ("auto", "loop"), "federate.backend", self.backend, "loop with federate.shard")


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
    beta: float = 1.0  # [C: CLIP2FL]; 0 with labels=keyword is the control row without KL, and asks no teacher
    temperature: float = 3.0  # of p and q in the KL term [C: CLIP2FL]
    logit_scale: float = 0.0  # q = softmax(logit_scale · cosine) of the `clip` teacher; 0 = the CLIP's own [D]
    augment: Literal["none", "flip", "crop_flip"] = "crop_flip"
    every: int = 0  # federated rounds after which the server aligns too, n, 2n, …; 0 = after the last one alone [D]
    timeout: float = 600.0  # seconds that ranks wait for one another

    @property
    def between_rounds(self) -> bool:
        """Whether the global model is aligned also while it is federated."""
        return self.enabled and self.every > 0

    @property
    def taught(self) -> bool:
        """Whether the loss or the labels need the teacher."""
        return self.beta > 0 or self.labels == "teacher"

    def __post_init__(self) -> None:
        for name in ("images_per_class", "epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"align.{name}", getattr(self, name), "1 or more")
        require(self.every >= 0, "align.every", self.every, "0 (after the last round alone) or more")
        for name in ("lr", "temperature", "timeout"):
            require(getattr(self, name) > 0, f"align.{name}", getattr(self, name), "above 0")
        require(self.logit_scale >= 0, "align.logit_scale", self.logit_scale, "above 0, or 0 for the CLIP's own")
        require(0 <= self.momentum < 1, "align.momentum", self.momentum, "a value from 0 to below 1")
        require(self.beta >= 0, "align.beta", self.beta, "0 or more")
