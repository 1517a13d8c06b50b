"""Settings of the data: what shards are built from, how clients share them, how a run reads them.

Marks in the comments: [C] the official code of CReFF or CLIP2FL, [D] a decision of this project (no source says it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedscale import plugins
from fedscale.config.checks import require

FORMATS = ("parquet", "folder", "cifar-python", "imagenet", "shapes")
FORMAT_KEY, FORMAT_GROUP = "format", "fedscale.datasets"  # entry points of other packages


@dataclass(frozen=True)
class OpenPoolConfig:
    """The server's open web pool: the images that the long tail leaves over, with their class word as crawl keyword."""

    enabled: bool = True
    reserve: int = 500  # images a class set aside for the pool before the long tail is cut; 0 = the published protocol
    validation: int = 50  # images a class of the pool kept for choices (learning rates, stopping); never captioned

    def __post_init__(self) -> None:
        require(self.reserve >= 0, "open_pool.reserve", self.reserve, "0 or more images a class")
        require(self.validation >= 0, "open_pool.validation", self.validation, "0 or more images a class")


@dataclass(frozen=True)
class ShapesConfig:
    """The procedural set: images a class in each split, before the long tail is cut."""

    train_per_class: int = 200
    test_per_class: int = 100

    def __post_init__(self) -> None:
        require(self.train_per_class >= 1, "shapes.train_per_class", self.train_per_class, "1 or more")
        require(self.test_per_class >= 1, "shapes.test_per_class", self.test_per_class, "1 or more")


@dataclass(frozen=True)
class RecipeConfig:
    """On which data: where the images come from and how they become shards (a file of shards/)."""

    name: str = ""  # of the data set; defaults to the recipe file's name
    format: str = "shapes"  # one of FORMATS, an installed one, or package.module:Name (docs/extending.md)
    source: str | None = None  # folder of the originals; none for `shapes`; for another package's format, any text
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

    @property
    def needs_folder(self) -> bool:
        """Whether `source` is a folder that has to be there before anything is read."""
        return self.format in FORMATS and self.format != "shapes"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            plugins.target_of(self.format, FORMAT_KEY, FORMAT_GROUP, FORMATS)
        if self.imbalance_factor is not None:
            require(self.imbalance_factor >= 1, "imbalance_factor", self.imbalance_factor, "1 (balanced) or more")
        require(self.classes is None or self.classes >= 2, "classes", self.classes, "2 or more")
        require(self.samples_per_shard >= 1, "samples_per_shard", self.samples_per_shard, "1 or more")
        require(0 <= self.max_corrupt < 1, "max_corrupt", self.max_corrupt, "a share from 0 to below 1")
        read = self.format != "shapes" or self.source is None
        require(read, "source", self.source, "none with format=shapes, which draws its images; set format=")


@dataclass(frozen=True)
class PartitionConfig:
    """How the long-tailed training images are dealt to the clients."""

    kind: Literal["iid", "dirichlet", "dirichlet_equal", "pathological", "quantity", "long_tail_client"] = (
        "dirichlet_equal"  # [C]
    )
    clients: int = 20  # [C]
    alpha: float = 0.5  # Dirichlet concentration: of classes over clients [C], of the clients' sizes (quantity)
    classes_per_client: int = 2  # pathological only
    client_imbalance_factor: float = 100.0  # long_tail_client only: of each client's own tail [D]
    min_samples: int = 1  # that each client must hold
    tries: int = 100  # draws before the partition is repaired instead
    file: str | None = None  # read the partition from this exported file instead of drawing it
    pool_client: bool = False  # control row: the open pool, labelled by keywords, is one more client, drawn alike [D]

    def __post_init__(self) -> None:
        require(self.clients >= 1, "data.partition.clients", self.clients, "1 or more")
        require(self.alpha > 0, "data.partition.alpha", self.alpha, "above 0")
        require(self.classes_per_client >= 1, "data.partition.classes_per_client", self.classes_per_client, "1 or more")
        factor = self.client_imbalance_factor
        require(factor >= 1, "data.partition.client_imbalance_factor", factor, "1 (no tail of its own) or more")
        require(self.min_samples >= 0, "data.partition.min_samples", self.min_samples, "0 or more")
        require(self.tries >= 1, "data.partition.tries", self.tries, "1 or more")


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
        require(self.image_size >= 8, "data.image_size", self.image_size, "8 pixels or more")
        require(all(s > 0 for s in self.std), "data.std", self.std, "three values above 0")
