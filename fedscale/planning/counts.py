"""How many images there are, and who holds them: of built shards, of the recipe, or as asked. No image is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedscale import house
from fedscale.config.schema import Config, DataConfig
from fedscale.data import manifest as manifests
from fedscale.data.build import shard_folder
from fedscale.data.longtail import pareto_counts
from fedscale.data.manifest import Manifest
from fedscale.data.partition import Partition, make_partition
from fedscale.data.plan import make_plan
from fedscale.data.sources import ArraySource
from fedscale.errors import UserError

MOST_DEALT = 5_000_000  # images that are dealt to clients one by one; of more, every client holds as many as the others
EQUAL = ("iid", "dirichlet_equal")  # partitions that end in a cut into equal parts, whatever was drawn before
RECORD = 1536  # bytes of a sample's headers and padding in a tar: three members, half a block of each empty
SQUARE = 1.0  # height over width of an image whose sides nobody told


@dataclass(frozen=True)
class Originals:
    """What is known of a data set before it is here: images a class, bytes and pixels an image, on average."""

    train: int
    test: int
    bytes: float
    pixels: float
    source: str


# CIFAR: Krizhevsky 2009; a PNG of 32 × 32 takes about 2.3 KB. ImageNet: Russakovsky et al. 2015; the archive of the
# training images (147,897,477,120 bytes) over their number (1,281,167); 500 × 375 is the usual size.
CIFAR10 = Originals(5000, 1000, 2300, 32 * 32, "CIFAR-10's 50,000 and 10,000 images")
CIFAR100 = Originals(500, 100, 2300, 32 * 32, "CIFAR-100's 50,000 and 10,000 images")
IMAGENET = Originals(1281, 50, 115_440, 500 * 375, "ImageNet's 1,281,167 and 50,000 images")
SHAPES = Originals(0, 0, 700, 32 * 32, "the recipe's procedural images")
IMAGENET_LT = (1280, 5, 115_846, 1000)  # largest, smallest class, images, classes: Liu et al., CVPR 2019
IMAGENET_IMAGES = 1_281_167


@dataclass(frozen=True)
class Counts:
    """Images by split and client. `told` says where the numbers are from, `exact` whether they are the data's own."""

    classes: int
    train: int
    pool: int
    validation: int
    test: int
    sizes: np.ndarray  # int64 [clients], images of each
    image_bytes: float  # encoded, on average
    image_pixels: float
    pool_shard: int  # images of a shard of the pool
    told: str
    exact: bool

    @property
    def captioned_shards(self) -> int:
        """Shards of the pool."""
        return -(-self.pool // self.pool_shard)

    def judged(self, split: str) -> int:
        """Images of the split that models are evaluated on."""
        return self.test if split == "test" else self.validation


def counts_of(config: Config, images: int = 0, pool: int = 0) -> Counts:
    """The numbers for a config, `images` of the clients and `pool` of the open pool put in their place where given.

    Raises UserError where neither shards, recipe nor these say how many.
    """
    found = _of_shards(config, images) or _of_recipe(config, images, pool)
    if images and images != found.train:
        found = replace(found, train=images, told=f"{images:,} images as asked", exact=False)
    if pool:
        found = replace(found, pool=pool, told=f"{found.told}; a pool of {pool:,} as asked")
    return found


def _of_shards(config: Config, images: int) -> Counts | None:
    folder = shard_folder(config.data)
    if not (folder / manifests.FILE).exists():
        return None
    manifest = Manifest.load(folder)
    held = [shard for shards in manifest.splits.values() for shard in shards]
    in_all = max(1, sum(shard.samples for shard in held))
    labels = np.repeat(np.arange(len(manifest.class_names)), manifest.class_counts("train"))
    known = _originals(config.data)
    return Counts(
        len(manifest.class_names),
        len(labels),
        manifest.num_samples("pool"),
        manifest.num_samples("validation"),
        manifest.num_samples("test"),
        _dealt(config, labels, images),
        sum(shard.bytes for shard in held) / in_all - RECORD,
        known.pixels if known else config.data.image_size**2 * SQUARE,
        max((shard.samples for shard in manifest.splits.get("pool", ())), default=config.data.samples_per_shard),
        f"the shards in {folder}",
        True,
    )


def _originals(data: DataConfig) -> Originals | None:
    if data.format == "shapes":
        return replace(SHAPES, train=data.shapes.train_per_class, test=data.shapes.test_per_class)
    if data.format == "imagenet":
        return IMAGENET
    if data.format in ("parquet", "cifar-python"):
        return {10: CIFAR10, 100: CIFAR100}.get(data.classes or 0)
    return None


def _of_recipe(config: Config, images: int, pool: int) -> Counts:
    data = config.data
    known = _originals(data)
    classes = 10 if data.format == "shapes" else data.classes or len(data.class_names)
    if not classes:
        raise UserError(
            f"data.classes: {data.name or data.format} does not say how many classes it has, and its shards are not "
            "built; give data.classes="
        )
    if data.format == "imagenet" and data.train_list:
        return _by_list(config, classes, images)
    if known is None:
        if not images:
            raise UserError(
                f"data: {data.name or data.format} does not say how many images it has, and its shards are not built; "
                "give --images (of the clients) and --pool"
            )
        sizes, size = _even(images, config), data.image_size**2 * SQUARE
        per_image = 0.6 * size  # bytes a pixel of a photograph's JPEG [assumed]
        return Counts(
            classes, images, pool, 0, images // 10, sizes, per_image, size, data.samples_per_shard,
            f"{images:,} images as asked, a tenth as many to test", False,
        )  # fmt: skip
    plan = make_plan(replace(data, class_names=()), _stand_in(classes, known))
    split = {name: len(members) for name, members in plan.splits.items()}
    labels = plan.labels["train"][plan.splits["train"]]
    return Counts(
        classes,
        split["train"],
        split.get("pool", 0),
        split.get("validation", 0),
        split.get("test", 0),
        _dealt(config, labels, images),
        known.bytes,
        known.pixels,
        data.samples_per_shard,
        f"{known.source}, dealt by the recipe",
        data.format == "shapes",
    )


def _stand_in(classes: int, known: Originals) -> ArraySource:
    """A source of as many images, of one pixel each."""

    def split(each: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes, dtype=np.int64), each)
        return np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (len(labels), 1, 1, 3)), labels

    return ArraySource([str(c) for c in range(classes)], train=split(known.train), test=split(known.test))


def _by_list(config: Config, classes: int, images: int) -> Counts:
    """ImageNet by a list: the list's own counts where it lies here, else those that were published."""
    data = config.data
    listed = _read_list(data)
    if listed is None and (classes, Path(str(data.train_list)).name) != (1000, "ImageNet_LT_train.txt"):
        raise UserError(
            f"data.train_list={data.train_list}: not here, and not ImageNet-LT's; give data.source= with the list in it"
        )
    rehearsed = "rehearsal" in data.name
    per_class = np.bincount(listed, minlength=classes) if listed is not None else np.array(pareto_counts(*IMAGENET_LT))
    labels = np.repeat(np.arange(len(per_class)), per_class)
    # A rehearsal's pool is 6 images a class beside the list, of 32 pixels (data/rehearsal.py).
    left = 6 * classes if rehearsed else IMAGENET_IMAGES - len(labels)
    validation = data.open_pool.validation * classes
    told = "the list" if listed is not None else "ImageNet-LT's published 115,846 images (its class sizes by quantiles)"
    return Counts(
        classes,
        len(labels),
        left - validation if data.open_pool.enabled else 0,
        validation if data.open_pool.enabled else 0,
        50 * classes,
        _dealt(config, labels, images),
        SHAPES.bytes if rehearsed else IMAGENET.bytes,
        SHAPES.pixels if rehearsed else IMAGENET.pixels,
        data.samples_per_shard,
        told,
        False,
    )


def _read_list(data: DataConfig) -> np.ndarray | None:
    """The labels of the list, lines of `path label`; None where it is not here."""
    assert data.train_list is not None
    places = [str(Path(data.source) / data.train_list)] if data.source else []
    for place in (*places, data.train_list):
        try:
            lines = house.find(place).read_text(encoding="utf-8").splitlines()
            return np.array([int(line.rsplit(maxsplit=1)[1]) for line in lines if line.strip()], dtype=np.int64)
        except (UserError, OSError):
            continue
        except (ValueError, IndexError):
            raise UserError(f"data.train_list={place}: expected lines of `path label`") from None
    return None


def _dealt(config: Config, labels: np.ndarray, images: int) -> np.ndarray:
    """The clients' sizes, dealt as a run deals them, or `images` evenly where so many are asked for.

    In which order the images lie in the store, which decides who gets what, cannot be known here.
    """
    if images:
        return _even(images, config)
    settings = config.data.partition
    if settings.file is None and (settings.kind in EQUAL or len(labels) > MOST_DEALT):
        return _even(len(labels), config)
    if settings.file is not None:
        return sizes_of(Partition.load(settings.file).clients)
    return sizes_of(make_partition(labels, int(labels.max()) + 1, settings, config.seed).clients)


def sizes_of(clients: Sequence[np.ndarray]) -> np.ndarray:
    """Images of each client, int64."""
    return np.array([len(rows) for rows in clients], dtype=np.int64)


def _even(images: int, config: Config) -> np.ndarray:
    clients = config.data.partition.clients
    if images < clients:
        raise UserError(f"--images {images}: fewer than data.partition.clients={clients}; expected one each at least")
    return images // clients + (np.arange(clients) < images % clients).astype(np.int64)  # as np.array_split cuts
