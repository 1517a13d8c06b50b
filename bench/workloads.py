"""The workloads of the engine benchmark, as data and numbers alone: NumPy, no torch, so that every peer can read them.

Every draw is a function of (the workload's seed, purpose, round), so that all engines train the same users on the same
images in the same cohorts. Images are uint8 [N, H, W, C] with labels [N] that can be learnt: a smooth prototype a
class, under noise, with a tenth of the labels wrong, which keeps losses away from 0, where a relative comparison means
nothing. A user is a list of indices; its batches are taken in that order, without shuffling; updates are weighted by
numbers of images. `python bench/workloads.py` lists all workloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WRONG_LABELS = 0.1
CENTRE, SCALE = 127.5, 64.0  # what `normalised` takes off and divides by: uint8 to floats of about unit variance
LONG_TAIL_HEAD, LONG_TAIL_FACTOR = 4500, 0.01  # 11,165 images: CIFAR-10-LT, IF 100, less the tenth held out


@dataclass(frozen=True)
class Workload:
    """One federated task. Sizes are numbers of images; `batch` and `epochs` are local; the server's rate is 1.

    `users` × `user_images` images are shared out without overlap. Where `user_spread` (σ of the logarithm) is set,
    sizes are log-normal around `user_images` within `user_range`, and users draw from a pool of `pool` images instead.
    """

    name: str
    model: str
    image: tuple[int, int, int]  # height, width, channels
    classes: int
    users: int
    user_images: int
    cohort: int
    batch: int
    learning_rate: float
    parameters: int  # trainable numbers of the model, which the engines check
    epochs: int = 1
    server_learning_rate: float = 1.0
    user_spread: float = 0.0
    user_range: tuple[int, int] = (0, 0)
    pool: int = 0
    long_tail: bool = False
    signal: float = 24.0  # amplitude of the prototypes, in grey levels
    noise: float = 48.0  # standard deviation of the noise, in grey levels
    seed: int = 20260801


@dataclass(frozen=True)
class Data:
    """Images uint8 [N, H, W, C], labels int64 [N], and all users' indices in one array: user u has offsets[u:u + 2]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def user(self, number: int) -> NDArray[np.int64]:
        return self.indices[self.offsets[number] : self.offsets[number + 1]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Images of each user."""
        return np.diff(self.offsets)


_SMALL: dict[str, Any] = {
    "users": 1000,
    "user_images": 50,
    "cohort": 50,
    "batch": 10,
    "classes": 10,
}  # pfl's CIFAR-10 IID benchmark
_GREY, _COLOUR = (28, 28, 1), (32, 32, 3)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        # B1, overhead.
        Workload("lr", "lr", _GREY, learning_rate=0.01, parameters=7_850, **_SMALL),
        Workload("mlp", "mlp", _GREY, learning_rate=0.1, parameters=101_770, **_SMALL),
        # B2 for a CPU. LeNet pads by 2 in its first convolution; simple_cnn is pfl-research's.
        Workload("lenet", "lenet", _GREY, learning_rate=0.1, parameters=61_706, signal=64.0, **_SMALL),
        Workload("simple_cnn", "simple_cnn", _COLOUR, learning_rate=0.1, parameters=1_626_442, **_SMALL),
        # B3, FEMNIST-shaped: writers have 19 to 584 images.
        Workload(
            "femnist", "lenet", _GREY, classes=62, users=3400, user_images=200, cohort=10, batch=20, signal=64.0,
            learning_rate=0.1, parameters=66_126, user_spread=0.4, user_range=(19, 584), pool=60_000,
        ),
        # B4 for a CPU: ResNet-8 of width 16 on images in CIFAR-10-LT's numbers, in equal slices of 558 or 559.
        Workload(
            "resnet8", "resnet8", _COLOUR, classes=10, users=20, user_images=558, cohort=8, batch=32,
            learning_rate=0.05, parameters=78_042, long_tail=True,
        ),
    )
}  # fmt: skip


def _draws(workload: Workload, *purpose: int) -> np.random.Generator:
    return np.random.default_rng((workload.seed, *purpose))


def class_counts(workload: Workload) -> NDArray[np.int64]:
    """Images of each class, long-tailed (exponential) or as equal as they can be."""
    if workload.long_tail:
        steps = np.arange(workload.classes) / (workload.classes - 1)
        return (LONG_TAIL_HEAD * LONG_TAIL_FACTOR**steps).astype(np.int64)
    total = workload.pool or workload.users * workload.user_images
    return np.bincount(np.arange(total) % workload.classes, minlength=workload.classes)


def user_sizes(workload: Workload, total: int) -> NDArray[np.int64]:
    """Images of each user: log-normal where the workload spreads them, equal slices of `total` where it does not."""
    if workload.user_spread:
        drawn = _draws(workload, 2).normal(np.log(workload.user_images), workload.user_spread, workload.users)
        return np.clip(np.exp(drawn), *workload.user_range).astype(np.int64)
    return np.diff(np.arange(workload.users + 1) * total // workload.users)


def make_data(workload: Workload) -> Data:
    """The images, labels and users of a workload; the same at every call."""
    height, width, channels = workload.image
    draws = _draws(workload, 1)
    true = draws.permutation(np.repeat(np.arange(workload.classes), class_counts(workload)))
    coarse = draws.normal(size=(workload.classes, height // 4, width // 4, channels))
    prototypes = (workload.signal * coarse.repeat(4, axis=1).repeat(4, axis=2)).astype(np.float32)
    images = np.empty((len(true), height, width, channels), np.uint8)
    for start in range(0, len(true), 4096):  # in pieces, since floats take four times the memory
        classes = true[start : start + 4096]
        noise = draws.standard_normal((len(classes), height, width, channels), np.float32)
        levels = CENTRE + prototypes[classes] + workload.noise * noise
        images[start : start + 4096] = np.clip(np.rint(levels), 0, 255)
    wrong = draws.random(len(true)) < WRONG_LABELS
    labels = np.where(wrong, draws.integers(workload.classes, size=len(true)), true)

    sizes = user_sizes(workload, len(true))
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    indices = draws.integers(len(true), size=offsets[-1]) if workload.user_spread else draws.permutation(len(true))
    return Data(images, labels.astype(np.int64), indices.astype(np.int64), offsets.astype(np.int64))


def sample_cohorts(workload: Workload, rounds: int) -> NDArray[np.int64]:
    """Users of each round, [rounds, cohort], none twice in a round; round r does not depend on `rounds`."""
    drawn = [_draws(workload, 3, r).choice(workload.users, workload.cohort, replace=False) for r in range(rounds)]
    return np.stack(drawn)


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The floats that models take, (value − 127.5) / 64, in the images' own layout."""
    floats = images.astype(np.float32)
    floats -= np.float32(CENTRE)
    floats /= np.float32(SCALE)
    return floats


def save_npz(path: Path, data: Data, weights: Mapping[str, NDArray]) -> None:
    """Data and initial weights (a state dict as arrays) in one uncompressed file, which every peer reads."""
    named: dict[str, Any] = {f"weights/{name}": value for name, value in weights.items()}
    np.savez(path, images=data.images, labels=data.labels, indices=data.indices, offsets=data.offsets, **named)


def load_npz(path: Path) -> tuple[Data, dict[str, NDArray]]:
    """What `save_npz` wrote: the data, and the initial weights by their names in the torch model."""
    with np.load(path) as file:
        data = Data(file["images"], file["labels"], file["indices"], file["offsets"])
        prefix = "weights/"
        return data, {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}


if __name__ == "__main__":
    for each in WORKLOADS.values():
        print(each)
