"""A rehearsal of ImageNet-LT: procedural images in its folders, its list files and its class sizes.

ImageNet itself must be asked for and is 150 GB; what reads it should be tried before. A class is a shape of one colour
before another (`red star on blue`: ten of each make 1,000), so that it can be learnt, and its words can be told apart.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedscale import files
from fedscale.config.checks import require
from fedscale.data import shapes
from fedscale.data.folders import published_folder
from fedscale.data.longtail import pareto_counts
from fedscale.data.sources.imagenet import WORDS
from fedscale.data.stopping import stopped_by_signals
from fedscale.data.workers import Meter, in_processes, processes
from fedscale.errors import UserError
from fedscale.progress import Reporter
from fedscale.rng import derive, numpy_generator

TRAIN_LIST, TEST_LIST = "ImageNet_LT_train.txt", "ImageNet_LT_test.txt"
CARD = "rehearsal.json"
COLOURS: dict[str, shapes.Colour] = {
    "red": (1.00, 0.10, 0.10),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.95, 0.95, 0.10),
    "green": (0.15, 0.75, 0.15),
    "cyan": (0.10, 0.90, 0.95),
    "blue": (0.15, 0.25, 1.00),
    "purple": (0.55, 0.10, 0.85),
    "pink": (1.00, 0.55, 0.80),
    "white": (1.00, 1.00, 1.00),
    "grey": (0.45, 0.45, 0.45),
}
RADII = (9.0, 13.0)  # pixels


@dataclass(frozen=True)
class Rehearsal:
    """The set's shape; the defaults are ImageNet-LT's, but for the test and pool images (50 and about 1,165 there)."""

    classes: int = 1000
    images: int = 115_846  # that the training list names
    largest: int = 1280  # images of the largest class
    smallest: int = 5
    test: int = 10  # images a class
    pool: int = 6  # training images a class that no list names: the open pool
    seed: int = 7

    def __post_init__(self) -> None:
        most = len(shapes.CLASSES) * len(COLOURS) ** 2
        require(2 <= self.classes <= most, "classes", self.classes, f"2 to {most:,}")
        require(1 <= self.smallest < self.largest, "smallest", self.smallest, f"1 to below largest={self.largest}")
        require(self.test >= 1, "test", self.test, "1 or more images a class")
        require(self.pool >= 0, "pool", self.pool, "0 or more images a class")

    def counts(self) -> list[int]:
        """Listed training images a class, in label order; as in ImageNet-LT, chance says which class is large."""
        sizes = np.array(pareto_counts(self.largest, self.smallest, self.images, self.classes))
        return numpy_generator(self.seed, "rehearsal counts").permutation(sizes).tolist()


def words_of(label: int) -> str:
    """The class's name: `red star on blue`."""
    shape, front, back = _parts(label)
    return f"{front} {shape} on {back}"


def folder_of(label: int) -> str:
    """The class's folder, in the form of a WordNet id; labels go by the sorted ids, as ImageNet's do."""
    return f"n{label + 1:08d}"


def write_rehearsal(wanted: Rehearsal, out: Path, reporter: Reporter, jobs: int | None = None) -> None:
    """Draw the set into `out`, atomically, a class at a time in `jobs` processes; one that is there already is left.

    Equal settings, equal bytes. Raises UserError for an `out` that holds something else, Stopped after a signal.
    """
    if _is_complete(out, wanted):
        return
    counts = wanted.counts()
    total = sum(counts) + wanted.classes * (wanted.pool + wanted.test)
    with stopped_by_signals("drawing the rehearsal set:"), published_folder(out) as folder:
        jobs = processes(jobs, wanted.classes, total)
        draw = functools.partial(_draw_class, wanted, counts, folder)
        with (
            reporter.task("drawing the rehearsal set", total, "images") as task,
            closing(in_processes(draw, range(wanted.classes), jobs, task)) as drawn,
        ):
            for _ in drawn:
                pass
        files.write_text(folder / TRAIN_LIST, "".join(_listed("train", counts)))
        files.write_text(folder / TEST_LIST, "".join(_listed("val", [wanted.test] * wanted.classes)))
        lines = (f"{folder_of(label)} {words_of(label)}\n" for label in range(wanted.classes))
        files.write_text(folder / WORDS, "".join(lines))
        files.write_json(folder / CARD, asdict(wanted))
    _is_complete(out, wanted)  # another process may have published something else there meanwhile


def _parts(label: int) -> tuple[str, str, str]:
    rest, shape = divmod(label, len(shapes.CLASSES))
    back, front = divmod(rest, len(COLOURS))
    names = list(COLOURS)
    return shapes.CLASSES[shape], names[front], names[back]


def _listed(split: str, counts: list[int]) -> Iterator[str]:
    """The lines of a list file, class by class."""
    for label, count in enumerate(counts):
        for number in range(count):
            yield f"{_path(split, label, number)} {label}\n"


def _path(split: str, label: int, number: int) -> str:
    return f"{split}/{folder_of(label)}/{folder_of(label)}_{number}.JPEG"


def _draw_class(wanted: Rehearsal, counts: list[int], root: Path, label: int, meter: Meter) -> None:
    """All images of one class: those listed first, then the pool's, in one folder; the test images in another."""
    shape, front, back = _parts(label)
    for split, count in (("train", counts[label] + wanted.pool), ("val", wanted.test)):
        (root / split / folder_of(label)).mkdir(parents=True)
        stream = derive(wanted.seed, "rehearsal", split)
        for number in range(count):
            rng = numpy_generator(stream, label, number)
            pixels = shapes.draw(rng, shape, RADII, COLOURS[front], COLOURS[back])
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
            (root / _path(split, label, number)).write_bytes(buffer.getvalue())
            meter.advance()


def _is_complete(out: Path, wanted: Rehearsal) -> bool:
    """Whether `out` holds this very set. Raises UserError where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    card = out / CARD
    held = files.read_json(card) if card.is_file() else None
    if held != asdict(wanted):
        what = f"another rehearsal set ({json.dumps(held)})" if held else "something else"
        raise UserError(f"{out}: holds {what}; choose another folder, or delete it")
    return True
