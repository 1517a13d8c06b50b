"""Every setting, with its unit, range and default. A value out of range raises UserError from `__post_init__`.

Marks in the comments: [C] the official code of CReFF or CLIP2FL, [D] a decision of this project (no source says it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fedscale.errors import UserError

TEXT_KINDS = ("description", "conversation", "reasoning")


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise UserError(f"{key}={value}: expected {expected}")


@dataclass(frozen=True)
class OpenPoolConfig:
    """The server's open web pool: the images that the long tail leaves over, with their class word as crawl keyword."""

    enabled: bool = True
    reserve: int = 500  # images a class set aside for the pool before the long tail is cut; 0 = the published protocol
    validation: int = 50  # images a class of the pool kept for choices (learning rates, stopping); never captioned

    def __post_init__(self) -> None:
        _require(self.reserve >= 0, "open_pool.reserve", self.reserve, "0 or more images a class")
        _require(self.validation >= 0, "open_pool.validation", self.validation, "0 or more images a class")


@dataclass(frozen=True)
class ShapesConfig:
    """The procedural set: images a class in each split, before the long tail is cut."""

    train_per_class: int = 200
    test_per_class: int = 100

    def __post_init__(self) -> None:
        _require(self.train_per_class >= 1, "shapes.train_per_class", self.train_per_class, "1 or more")
        _require(self.test_per_class >= 1, "shapes.test_per_class", self.test_per_class, "1 or more")


@dataclass(frozen=True)
class RecipeConfig:
    """On which data: where the images come from and how they become shards (a file of shards/)."""

    name: str = ""  # of the data set; defaults to the recipe file's name
    format: Literal["parquet", "folder", "cifar-python", "imagenet", "shapes"] = "shapes"
    source: str | None = None  # folder of the originals; none for `shapes`
    classes: int | None = None  # how many the source must have; none = as many as it has
    class_names: tuple[str, ...] = ()  # in label order; none = as the source names them
    imbalance_factor: float | None = None  # n_max / n_min of the long tail; none = keep all images (or the list's)
    train_list: str | None = None  # ImageNet-LT list file, lines of `path label`, instead of the imbalance factor
    test_list: str | None = None
    samples_per_shard: int = 5000
    max_corrupt: float = 0.01  # share of undecodable images above which the build stops
    seed: int = 7
    open_pool: OpenPoolConfig = field(default_factory=OpenPoolConfig)
    shapes: ShapesConfig = field(default_factory=ShapesConfig)

    def __post_init__(self) -> None:
        if self.imbalance_factor is not None:
            _require(self.imbalance_factor >= 1, "imbalance_factor", self.imbalance_factor, "1 (balanced) or more")
        _require(self.classes is None or self.classes >= 2, "classes", self.classes, "2 or more")
        _require(self.samples_per_shard >= 1, "samples_per_shard", self.samples_per_shard, "1 or more")
        _require(0 <= self.max_corrupt < 1, "max_corrupt", self.max_corrupt, "a share from 0 to below 1")


@dataclass(frozen=True)
class PartitionConfig:
    """How the long-tailed training images are dealt to the clients."""

    kind: Literal["iid", "dirichlet", "dirichlet_equal", "pathological"] = "dirichlet_equal"  # [C]
    clients: int = 20  # [C]
    alpha: float = 0.5  # Dirichlet concentration [C]
    classes_per_client: int = 2  # pathological only
    min_samples: int = 1  # that each client must hold
    tries: int = 100  # draws before the partition is repaired instead
    file: str | None = None  # read the partition from this exported file instead of drawing it

    def __post_init__(self) -> None:
        _require(self.clients >= 1, "partition.clients", self.clients, "1 or more")
        _require(self.alpha > 0, "partition.alpha", self.alpha, "above 0")
        _require(self.classes_per_client >= 1, "partition.classes_per_client", self.classes_per_client, "1 or more")
        _require(self.min_samples >= 0, "partition.min_samples", self.min_samples, "0 or more")
        _require(self.tries >= 1, "partition.tries", self.tries, "1 or more")


@dataclass(frozen=True)
class DataConfig(RecipeConfig):
    """A recipe (all its keys may be overridden here) and how a run reads it."""

    recipe: str = ""  # e.g. shards/cifar10_lt.yaml; its keys are the defaults of this section
    dir: str | None = None  # the built shards; none = shards/<name>-<fingerprint>, built when absent
    pool: str | None = None  # folder of a `fedscale shards import`: this open pool is captioned, not the recipe's own
    image_size: int = 32  # pixels, side of the square images that clients hold
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    partition: PartitionConfig = field(default_factory=PartitionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.image_size >= 8, "data.image_size", self.image_size, "8 pixels or more")
        _require(all(s > 0 for s in self.std), "data.std", self.std, "three values above 0")


@dataclass(frozen=True)
class ModelConfig:
    """The compact model f that clients train."""

    name: Literal["resnet8", "resnet50"] = "resnet8"
    width: int = 64  # channels of ResNet-8's stem; 64 is the paper's

    def __post_init__(self) -> None:
        _require(self.width >= 1, "model.width", self.width, "1 or more channels")


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
class OfflineConfig:
    """Teachers trained from scratch on the open pool and its keywords, for machines that can reach no weights."""

    enabled: bool = False
    images: int = 0  # pool images to train on; 0 = all
    clip_epochs: int = 12
    mllm_epochs: int = 3
    batch_size: int = 128
    lr: float = 1e-3

    def __post_init__(self) -> None:
        _require(self.clip_epochs >= 1, "teachers.offline.clip_epochs", self.clip_epochs, "1 or more")
        _require(self.mllm_epochs >= 1, "teachers.offline.mllm_epochs", self.mllm_epochs, "1 or more")


@dataclass(frozen=True)
class TeachersConfig:
    """The two teachers on the server. Nothing of them ever reaches a client."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    mllm: MllmConfig = field(default_factory=MllmConfig)
    offline: OfflineConfig = field(default_factory=OfflineConfig)


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
            _require(bool(questions) and all(questions), f"caption.prompts.{kind}", list(questions), "some questions")
        _require("{keyword}" in self.hint, "caption.prompts.hint", self.hint, "a text with {keyword} in it")


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
        _require(self.concurrency >= 1, "caption.openai.concurrency", self.concurrency, "1 or more requests")
        _require(self.timeout > 0, "caption.openai.timeout", self.timeout, "above 0 seconds")
        _require(self.retries >= 0, "caption.openai.retries", self.retries, "0 or more")


@dataclass(frozen=True)
class VllmConfig:
    """The `vllm` engine's own settings; the model is `teachers.mllm`."""

    tensor_parallel_size: int = 1  # GPUs that one worker spreads the model over
    gpu_memory_utilization: float = 0.9  # share of the GPU's memory
    max_model_len: int = 0  # tokens of prompt, image and answer; 0 = the model's own

    def __post_init__(self) -> None:
        _require(self.tensor_parallel_size >= 1, "caption.vllm.tensor_parallel_size", self.tensor_parallel_size, "1+")
        share = self.gpu_memory_utilization
        _require(0 < share <= 1, "caption.vllm.gpu_memory_utilization", share, "a share in (0, 1]")
        _require(self.max_model_len >= 0, "caption.vllm.max_model_len", self.max_model_len, "0 or more tokens")


@dataclass(frozen=True)
class FeaturesConfig:
    """Stored embeddings of the frozen CLIP, so that pretraining need not run it (arXiv 2311.17049, section 3)."""

    enabled: bool = False
    views: int = 1  # embeddings an image: view 0 is the image itself, the others are augmented by stored seeds
    batch_size: int = 256

    def __post_init__(self) -> None:
        _require(self.views >= 1, "caption.features.views", self.views, "1 or more")
        _require(self.batch_size >= 1, "caption.features.batch_size", self.batch_size, "1 or more images")


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
        _require(
            bool(self.kinds) and not unknown, "caption.kinds", list(self.kinds), f"some of {', '.join(TEXT_KINDS)}"
        )
        _require(self.max_images >= 0, "caption.max_images", self.max_images, "0 or more")
        for name in ("batch_size", "flush_every", "max_new_tokens", "max_pixels", "max_attempts", "fuse"):
            _require(getattr(self, name) >= 1, f"caption.{name}", getattr(self, name), "1 or more")
        _require(self.temperature >= 0, "caption.temperature", self.temperature, "0 (greedy) or more")
        _require(
            all(t > 0 for t in self.retry_temperatures),
            "caption.retry_temperatures",
            list(self.retry_temperatures),
            "values above 0 (the same greedy text would come again)",
        )
        _require(self.heartbeat > 0, "caption.heartbeat", self.heartbeat, "above 0 seconds")
        share = self.max_failed_shards
        _require(0 <= share < 1, "caption.max_failed_shards", share, "a share from 0 to below 1")


@dataclass(frozen=True)
class AlphaConfig:
    """α(t), the student's weight in h = α·h_f + (1 − α)·h_g; rises over training (METHOD.md, stage 1) [D]."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    start: float = 0.0
    end: float = 1.0  # `constant` uses this value throughout

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"pretrain.alpha.{name}", value, "a value from 0 to 1")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the language model's linear layers (peft)."""

    rank: int = 8
    scale: float = 16.0  # lora_alpha
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "pretrain.lora.rank", self.rank, "1 or more")


@dataclass(frozen=True)
class ProbeConfig:
    """The data-fraction figure: pretrained against random weights on a few labelled training images, centrally."""

    enabled: bool = True
    fractions: tuple[float, ...] = (0.01, 0.1)  # of the training images, the same share of each class, at least one
    steps: int = 100
    batch_size: int = 32
    lr: float = 0.02

    def __post_init__(self) -> None:
        _require(
            all(0 < f <= 1 for f in self.fractions), "pretrain.probe.fractions", self.fractions, "shares in (0, 1]"
        )


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
            _require(getattr(self, name) >= 1, f"pretrain.{name}", getattr(self, name), "1 or more")
        _require(self.lr > 0, "pretrain.lr", self.lr, "above 0")
        _require(0 <= self.warmup < 1, "pretrain.warmup", self.warmup, "a share from 0 to below 1")
        for name in ("feature_weight", "contrastive_weight", "weight_decay"):
            _require(getattr(self, name) >= 0, f"pretrain.{name}", getattr(self, name), "0 or more")


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
            _require(getattr(self, name) >= 1, f"federate.{name}", getattr(self, name), "1 or more")
        _require(self.lr > 0, "federate.lr", self.lr, "above 0")
        _require(0 <= self.momentum < 1, "federate.momentum", self.momentum, "a value from 0 to below 1")
        _require(self.weight_decay >= 0, "federate.weight_decay", self.weight_decay, "0 or more")


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
            _require(getattr(self, name) >= 1, f"align.{name}", getattr(self, name), "1 or more")
        for name in ("lr", "temperature", "logit_scale"):
            _require(getattr(self, name) > 0, f"align.{name}", getattr(self, name), "above 0")
        _require(0 <= self.momentum < 1, "align.momentum", self.momentum, "a value from 0 to below 1")
        _require(self.beta >= 0, "align.beta", self.beta, "0 or more")


@dataclass(frozen=True)
class GroupsConfig:
    """Many / medium / few: by training images a class (`count`), or the first / last classes by count (`rank`)."""

    kind: Literal["count", "rank"] = "rank"
    many_over: int = 100  # count: many > 100 images
    few_under: int = 20  # count: few < 20 images
    many_classes: int = 3  # rank: the 3 largest classes are many
    few_classes: int = 3  # rank: the 3 smallest are few

    def __post_init__(self) -> None:
        _require(
            self.few_under <= self.many_over, "eval.groups.few_under", self.few_under, "at most eval.groups.many_over"
        )
        for name in ("many_classes", "few_classes"):
            _require(getattr(self, name) >= 1, f"eval.groups.{name}", getattr(self, name), "1 or more")


@dataclass(frozen=True)
class EvalConfig:
    """How models are judged."""

    split: Literal["test", "validation"] = "test"  # choices are made on `validation` alone
    every: int = 1  # rounds
    batch_size: int = 500
    groups: GroupsConfig = field(default_factory=GroupsConfig)

    def __post_init__(self) -> None:
        _require(self.every >= 1, "eval.every", self.every, "1 or more")
        _require(self.batch_size >= 1, "eval.batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True)
class Config:
    """One experiment. `variants` (name → overlay) and `seeds` make `run` execute one child run for each pair."""

    name: str = ""  # of the run folder; defaults to the first config file's name
    out: str = "runs"
    seed: int = 7
    seeds: tuple[int, ...] = ()
    variants: dict[str, Any] = field(default_factory=dict)
    variant: str = ""  # only this variant; in a child run's saved config, the one that it is
    jobs: int = 1  # child stages at once, a process each
    threads: int = 0  # CPU threads a process; 0 = cores / jobs
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    federate: FederateConfig = field(default_factory=FederateConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        _require(self.jobs >= 1, "jobs", self.jobs, "1 or more")
        _require(self.threads >= 0, "threads", self.threads, "0 (cores / jobs) or more")
        _require(len(set(self.seeds)) == len(self.seeds), "seeds", list(self.seeds), "different seeds")
        per_round, clients = self.federate.clients_per_round, self.data.partition.clients
        _require(
            per_round <= clients, "federate.clients_per_round", per_round, f"at most data.partition.clients ({clients})"
        )
