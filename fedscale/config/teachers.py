"""Settings of the server's teachers.

Marks in the comments: [C] the official code of CReFF or CLIP2FL, [D] a decision of this project (no source says it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedscale.config.checks import require


@dataclass(frozen=True)
class ClipConfig:
    """The frozen CLIP g: `hf-hub:…`, an open_clip name with `pretrained`, or a local folder saved in that form."""

    model: str = "ViT-B-32"
    pretrained: str | None = "laion2b_s34b_b79k"
    prompt: str = "a photo of a {}."  # text of a class for zero-shot classification [C]


@dataclass(frozen=True)
class MllmConfig:
    """The multimodal LLM: a hub id or local folder for AutoModelForImageTextToText and AutoProcessor."""

    model: str = "llava-hf/llava-1.5-7b-hf"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    question: str = "What is the main object in this image?"  # whose answer scores the classes in alignment [D]
    device_map: str | None = None  # `auto` spreads a model too large for one GPU over all that the process sees


@dataclass(frozen=True)
class LmConfig:
    """The language model of pretraining: a hub id or local folder for AutoModelForCausalLM and AutoTokenizer."""

    model: str = ""  # empty = the MLLM's own language model
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


@dataclass(frozen=True)
class OfflineConfig:
    """Teachers trained from scratch on the open pool and its keywords, for machines that can reach no weights."""

    enabled: bool = False
    images: int = 0  # pool images to train on; 0 = all
    clip_epochs: int = 12
    mllm_epochs: int = 3
    batch_size: int = 128
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("clip_epochs", "mllm_epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"teachers.offline.{name}", getattr(self, name), "1 or more")
        require(self.images >= 0, "teachers.offline.images", self.images, "0 (all) or more")
        require(self.lr > 0, "teachers.offline.lr", self.lr, "above 0")


@dataclass(frozen=True)
class TeachersConfig:
    """The two teachers on the server, and the language model that f learns before. None ever reaches a client."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    mllm: MllmConfig = field(default_factory=MllmConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    offline: OfflineConfig = field(default_factory=OfflineConfig)
