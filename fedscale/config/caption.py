"""Settings of stage 1a, captioning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedscale.config.checks import TEXT_KINDS, require


@dataclass(frozen=True)
class PromptsConfig:
    """What the MLLM is asked for each kind of text: several questions a kind, of which an image's key chooses one.

    A conversation is a list of questions asked one after another, each with the answers before it in sight.
    """

    hint: str = "A web page shows this image with the words: {keyword}. "  # before a question, with use_keyword
    description: tuple[str, ...] = ("Describe this image in detail.",)
    conversation: tuple[tuple[str, ...], ...] = (("What is the main object in this image?",),)
    reasoning: tuple[str, ...] = ("What is the main object in this image, and which visible features tell so?",)

    def __post_init__(self) -> None:
        for kind in TEXT_KINDS:
            questions = getattr(self, kind)
            require(bool(questions) and all(questions), f"caption.prompts.{kind}", list(questions), "some questions")
        require("{keyword}" in self.hint, "caption.prompts.hint", self.hint, "a text with {keyword} in it")


@dataclass(frozen=True)
class OpenAIConfig:
    """An endpoint of the OpenAI API: the `openai` engine's."""

    base_url: str = "https://api.openai.com/v1"
    model: str = "gpt-4o-mini"
    key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key; the key itself is never saved
    concurrency: int = 16  # requests under way at once
    timeout: float = 60.0  # seconds of one request
    retries: int = 5  # of one request, after 429, 5xx and timeouts, with exponential backoff

    def __post_init__(self) -> None:
        require(self.concurrency >= 1, "caption.openai.concurrency", self.concurrency, "1 or more requests")
        require(self.timeout > 0, "caption.openai.timeout", self.timeout, "above 0 seconds")
        require(self.retries >= 0, "caption.openai.retries", self.retries, "0 or more")


@dataclass(frozen=True)
class VllmConfig:
    """The `vllm` engine's own settings; the model is `teachers.mllm`."""

    tensor_parallel_size: int = 1  # GPUs that one worker spreads the model over
    gpu_memory_utilization: float = 0.9  # share of the GPU's memory
    max_model_len: int = 0  # tokens of prompt, image and answer; 0 = the model's own

    def __post_init__(self) -> None:
        require(self.tensor_parallel_size >= 1, "caption.vllm.tensor_parallel_size", self.tensor_parallel_size, "1+")
        share = self.gpu_memory_utilization
        require(0 < share <= 1, "caption.vllm.gpu_memory_utilization", share, "a share in (0, 1]")
        require(self.max_model_len >= 0, "caption.vllm.max_model_len", self.max_model_len, "0 or more tokens")


@dataclass(frozen=True)
class FeaturesConfig:
    """Stored embeddings of the frozen CLIP, so that pretraining need not run it (arXiv 2311.17049, section 3)."""

    enabled: bool = False
    views: int = 1  # embeddings an image: view 0 is the image itself, the others are augmented by stored seeds
    batch_size: int = 256

    def __post_init__(self) -> None:
        require(self.views >= 1, "caption.features.views", self.views, "1 or more")
        require(self.batch_size >= 1, "caption.features.batch_size", self.batch_size, "1 or more images")


@dataclass(frozen=True)
class CaptionConfig:
    """Stage 1a: the MLLM captions the open pool."""

    engine: Literal["hf", "vllm", "openai", "template"] = "hf"
    kinds: tuple[str, ...] = TEXT_KINDS
    prompt_file: str = ""  # e.g. configs/prompts/general.yaml; its keys are the defaults of `prompts`
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    use_keyword: bool = False  # whether a question is put with the crawl's keyword as a hint
    max_images: int = 0  # caption whole shards until this many images are done; 0 = the whole pool
    batch_size: int = 64  # texts generated at once
    flush_every: int = 256  # images after which finished rows are kept; what a killed worker does again at most
    max_new_tokens: int = 256  # of one text; a longer one is `truncated` and not trained on
    max_pixels: int = 2**26  # of one image, read from its header; a larger one is `too_large`
    temperature: float = 0.0  # 0 = greedy
    retry_temperatures: tuple[float, ...] = (0.4, 0.8)  # of the second, third … try at a text that is no good
    seed: int = 7
    dir: str | None = None  # a folder or URL that keeps the sidecars beside a pool that outlives runs; none = the run's
    overwrite: bool = False  # caption again what other settings captioned, instead of stopping
    leases: bool = False  # workers claim shards one by one (for arrays whose size changes), not by rank
    heartbeat: float = 10.0  # seconds between a lease's signs of life; after six missed ones another worker takes over
    max_attempts: int = 5  # at a shard, without progress, before it counts as failed
    max_failed_shards: float = 0.0  # share of the shards that may fail before the stage ends in an error
    fuse: int = 100  # images in a row that the engine fails at, after which the worker stops
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in TEXT_KINDS]
        require(bool(self.kinds) and not unknown, "caption.kinds", list(self.kinds), f"some of {', '.join(TEXT_KINDS)}")
        require(len(set(self.kinds)) == len(self.kinds), "caption.kinds", list(self.kinds), "different kinds")
        require(self.max_images >= 0, "caption.max_images", self.max_images, "0 or more")
        for name in ("batch_size", "flush_every", "max_new_tokens", "max_pixels", "max_attempts", "fuse"):
            require(getattr(self, name) >= 1, f"caption.{name}", getattr(self, name), "1 or more")
        require(self.temperature >= 0, "caption.temperature", self.temperature, "0 (greedy) or more")
        require(
            all(t > 0 for t in self.retry_temperatures),
            "caption.retry_temperatures",
            list(self.retry_temperatures),
            "values above 0 (the same greedy text would come again)",
        )
        require(self.heartbeat > 0, "caption.heartbeat", self.heartbeat, "above 0 seconds")
        share = self.max_failed_shards
        require(0 <= share < 1, "caption.max_failed_shards", share, "a share from 0 to below 1")
