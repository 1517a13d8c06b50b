"""What the built-in methods let one choose, as `federate.options.NAME`. Defaults are the papers' or official codes'.

Marks: [P] the method's paper, [C] its official code, [D] a decision of this project (no source says it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedscale.config.checks import require

PATH = "federate.options"


@dataclass(frozen=True)
class NoOptions:
    """A method without any."""


@dataclass(frozen=True)
class MomentumOptions:
    """FedAvgM."""

    server_lr: float = 1.0
    momentum: float = 0.9  # β [P]

    def __post_init__(self) -> None:
        require(self.server_lr > 0, f"{PATH}.server_lr", self.server_lr, "above 0")
        require(0 <= self.momentum < 1, f"{PATH}.momentum", self.momentum, "a value from 0 to below 1")


@dataclass(frozen=True)
class AdaptiveOptions:
    """FedAdagrad, FedAdam, FedYogi."""

    server_lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99  # fedadam, fedyogi
    tau: float = 1e-3  # adaptivity

    def __post_init__(self) -> None:
        require(self.server_lr > 0, f"{PATH}.server_lr", self.server_lr, "above 0")
        require(self.tau > 0, f"{PATH}.tau", self.tau, "above 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{PATH}.{name}", value, "a value from 0 to below 1")


@dataclass(frozen=True)
class ProxOptions:
    """FedProx."""

    mu: float = 0.01  # weight of the proximal term

    def __post_init__(self) -> None:
        require(self.mu >= 0, f"{PATH}.mu", self.mu, "0 or more")


@dataclass(frozen=True)
class ScaffoldOptions:
    """SCAFFOLD."""

    server_lr: float = 1.0  # η_g

    def __post_init__(self) -> None:
        require(self.server_lr > 0, f"{PATH}.server_lr", self.server_lr, "above 0")


@dataclass(frozen=True)
class AdjustmentOptions:
    """Logit adjustment."""

    tau: float = 1.0  # [P]
    prior: Literal["local", "global"] = "global"  # whose class frequencies: the client's own, or all clients' [D]

    def __post_init__(self) -> None:
        require(self.tau > 0, f"{PATH}.tau", self.tau, "above 0; without adjustment it is fedavg")


@dataclass(frozen=True)
class BalancedOptions:
    """Balanced Softmax."""

    prior: Literal["local", "global"] = "local"  # whose class counts: the client's own, or all clients' [D]


@dataclass(frozen=True)
class FocalOptions:
    """Fed-Focal."""

    gamma: float = 2.0  # [C: of those who compare with it]

    def __post_init__(self) -> None:
        require(self.gamma >= 0, f"{PATH}.gamma", self.gamma, "0 (cross-entropy) or more")


@dataclass(frozen=True)
class TauNormOptions:
    """τ-normalisation."""

    tau: float = 1.0  # 0 keeps the norms and drops the bias alone; the paper chooses it on a validation set [D]

    def __post_init__(self) -> None:
        require(self.tau >= 0, f"{PATH}.tau", self.tau, "0 or more")


@dataclass(frozen=True)
class DynOptions:
    """FedDyn."""

    alpha: float = 0.01  # weight of the dynamic regulariser [C]

    def __post_init__(self) -> None:
        require(self.alpha > 0, f"{PATH}.alpha", self.alpha, "above 0; without the regulariser it is fedavg")


@dataclass(frozen=True)
class RestrictedOptions:
    """FedRS."""

    alpha: float = 0.5  # scale of the logits of classes that a client lacks; 1 is FedAvg [P]
    kind: Literal["hard", "soft"] = "hard"  # by which classes a client has [P], or by how much it has of each [C]

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, f"{PATH}.alpha", self.alpha, "a value from 0 to 1")


@dataclass(frozen=True)
class MoonOptions:
    """MOON."""

    mu: float = 1.0  # weight of the contrastive term [C]; its example on CIFAR-10 has 5
    temperature: float = 0.5  # τ [P]

    def __post_init__(self) -> None:
        require(self.mu >= 0, f"{PATH}.mu", self.mu, "0 or more")
        require(self.temperature > 0, f"{PATH}.temperature", self.temperature, "above 0")


@dataclass(frozen=True)
class RatioOptions:
    """Ratio Loss."""

    images_per_class: int = 63  # of the open pool, by keyword, kept by the server [C]
    alpha: float = 1.0  # weights α + β·R of the loss [C]
    beta: float = 0.1  # [C]
    threshold: float = 0.8  # a weight is its class's own where no other class moves it by more than this share [C]
    cap: float = 5000.0  # R at most [C]; with the default β a sample then weighs 501, too much for a high federate.lr

    def __post_init__(self) -> None:
        require(self.images_per_class >= 1, f"{PATH}.images_per_class", self.images_per_class, "1 or more")
        for name in ("alpha", "beta"):
            require(getattr(self, name) >= 0, f"{PATH}.{name}", getattr(self, name), "0 or more")
        require(0 < self.threshold < 1, f"{PATH}.threshold", self.threshold, "a share above 0 and below 1")
        require(self.cap > 0, f"{PATH}.cap", self.cap, "above 0")


@dataclass(frozen=True)
class CreffOptions:
    """CReFF."""

    features: int = 100  # of each class, kept by the server [C]
    match_steps: int = 100  # a round [C]
    match_lr: float = 0.1  # of the features [C]
    head_epochs: int = 300  # [C]
    head_batch: int = 32  # [C]
    head_lr: float = 0.01  # [C]

    def __post_init__(self) -> None:
        for name in ("features", "head_epochs", "head_batch"):
            require(getattr(self, name) >= 1, f"{PATH}.{name}", getattr(self, name), "1 or more")
        require(self.match_steps >= 0, f"{PATH}.match_steps", self.match_steps, "0 or more")
        for name in ("match_lr", "head_lr"):
            require(getattr(self, name) > 0, f"{PATH}.{name}", getattr(self, name), "above 0")


@dataclass(frozen=True)
class Clip2flOptions(CreffOptions):
    """CLIP2FL: CReFF's and its own."""

    alpha: float = 1.0  # weight of the clients' distillation [C; 2 until May 2024]
    temperature: float = 3.0  # of both distributions in it [C]
    prototype_weight: float = 0.001  # of the features' contrast to CLIP's texts [C; 0.5 until April 2024]
    prototype_temperature: float = 0.1  # [C]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "prototype_weight"):
            require(getattr(self, name) >= 0, f"{PATH}.{name}", getattr(self, name), "0 or more")
        for name in ("temperature", "prototype_temperature"):
            require(getattr(self, name) > 0, f"{PATH}.{name}", getattr(self, name), "above 0")


@dataclass(frozen=True)
class GrabOptions:
    """Fed-GraB."""

    classes: Literal["tail", "all"] = "tail"  # that are controlled [P]; the published script: all
    tail_after: float = 0.95  # share of the estimated samples before the tail begins [C]
    kp: float = 10.0  # [C]
    ki: float = 0.01  # [C]
    kd: float = 0.1  # [C]
    slope: float = 0.5  # s of f(u) [C; 0.05 in an earlier version]
    negatives: bool = True  # gradients of negatives are re-weighted too [C; not in an earlier version]

    def __post_init__(self) -> None:
        require(0 < self.tail_after < 1, f"{PATH}.tail_after", self.tail_after, "a share between 0 and 1")
        for name in ("kp", "ki", "kd"):
            require(getattr(self, name) >= 0, f"{PATH}.{name}", getattr(self, name), "0 or more")
        require(self.slope > 0, f"{PATH}.slope", self.slope, "above 0")


@dataclass(frozen=True)
class YoyoOptions:
    """FedYoYo."""

    tau: float = 1.5  # of the prior in the logits [C]
    temperature: float = 1.5  # of both views in the distillation [C]
    weight: float = 4.0  # λ of the distillation [C: the script's; its default is 1.5]
    warmup: int = 50  # rounds over which λ rises [C]
    own_share: float = 0.1  # γ: the client's own frequencies in its prior [C]
    mixing: Literal["once", "per_step"] = "once"  # per_step: the code's, by which the prior becomes the client's own
    momentum: float = 0.9  # of the estimated class sizes from round to round [C]

    def __post_init__(self) -> None:
        require(self.tau >= 0, f"{PATH}.tau", self.tau, "0 or more")
        require(self.temperature > 0, f"{PATH}.temperature", self.temperature, "above 0")
        require(self.weight >= 0, f"{PATH}.weight", self.weight, "0 or more")
        require(self.warmup >= 1, f"{PATH}.warmup", self.warmup, "1 or more rounds")
        require(0 <= self.own_share <= 1, f"{PATH}.own_share", self.own_share, "a share from 0 to 1")
        require(0 <= self.momentum < 1, f"{PATH}.momentum", self.momentum, "a value from 0 to below 1")


@dataclass(frozen=True)
class CcvrOptions:
    """CCVR. Its authors published no code; the constants are those of an independent one (smduan/Fed-CCVR)."""

    features: int = 2000  # virtual ones of each class
    covariance: Literal["full", "diagonal"] = "full"  # full [P]; the other for many classes of wide features [D]
    epochs: int = 10  # of the classifier's training on them
    batch_size: int = 64
    lr: float = 1e-3
    momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in ("features", "epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"{PATH}.{name}", getattr(self, name), "1 or more")
        require(self.lr > 0, f"{PATH}.lr", self.lr, "above 0")
        require(0 <= self.momentum < 1, f"{PATH}.momentum", self.momentum, "a value from 0 to below 1")


@dataclass(frozen=True)
class DistillationOptions:
    """FedDF."""

    pool_images: int = 2000  # of the open pool, that the server distils on, at most [D]
    steps: int = 500  # a round; the official code takes up to 10,000 and stops early by a labelled validation set [D]
    batch_size: int = 64  # [C]
    lr: float = 1e-3  # of Adam, cosine decay to 0 [C]
    temperature: float = 1.0  # [C]
    clip_norm: float = 5.0  # of a step's gradient; 0 = no clipping [C]

    def __post_init__(self) -> None:
        for name in ("pool_images", "steps", "batch_size"):
            require(getattr(self, name) >= 1, f"{PATH}.{name}", getattr(self, name), "1 or more")
        for name in ("lr", "temperature"):
            require(getattr(self, name) > 0, f"{PATH}.{name}", getattr(self, name), "above 0")
        require(self.clip_norm >= 0, f"{PATH}.clip_norm", self.clip_norm, "0 (no clipping) or more")


@dataclass(frozen=True)
class EnsembleOptions:
    """FedBE."""

    pool_images: int = 2000  # of the open pool, that the server distils on, at most [D]
    samples: int = 10  # models drawn from the Gaussian [C]
    noise: float = 0.1  # of its standard deviation; 1 is the Gaussian itself [C]
    temperature: float = 0.5  # of the sharpening; 1 sharpens nothing [C]
    epochs: int = 20  # of the pool's images, a round [C]
    batch_size: int = 128  # [C]
    lr: float = 1e-3  # [C]
    momentum: float = 0.9  # [C]
    decay: float = 1e-5  # weight decay [C]
    swa_start: float = 0.3  # share of the steps after which parameters are averaged [C: 500 of 1,580 steps]
    swa_every: int = 25  # steps [C]

    def __post_init__(self) -> None:
        for name in ("pool_images", "epochs", "batch_size", "swa_every"):
            require(getattr(self, name) >= 1, f"{PATH}.{name}", getattr(self, name), "1 or more")
        for name in ("samples", "noise", "decay"):
            require(getattr(self, name) >= 0, f"{PATH}.{name}", getattr(self, name), "0 or more")
        for name in ("lr", "temperature"):
            require(getattr(self, name) > 0, f"{PATH}.{name}", getattr(self, name), "above 0")
        for name in ("momentum", "swa_start"):
            require(0 <= getattr(self, name) < 1, f"{PATH}.{name}", getattr(self, name), "a value from 0 to below 1")
