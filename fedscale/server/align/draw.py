"""The alignment set of stage 3: a small, class-balanced draw from the captioned pool, labelled without a human.

Its order and its images are a function of the seed, the captioned shards and the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedscale.config.schema import Config
from fedscale.data.images import CorruptImage, decode, fit_square
from fedscale.data.keywords import KeywordClasses
from fedscale.data.manifest import Manifest
from fedscale.data.near_duplicates import left_out
from fedscale.errors import Stopped, UserError
from fedscale.rng import numpy_generator
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger
from fedscale.server.caption.join import joined
from fedscale.server.caption.ledger import Entry
from fedscale.session import Session

# Images uint8 [B, H, W, 3] to logits [B, C], whose softmax is the teacher's distribution q over the classes.
Teacher = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Origin:
    """Where an image of the pool lies, and the class that its crawl keyword names, or None."""

    shard: str
    key: str
    keyword: int | None


@dataclass(frozen=True)
class AlignmentSet:
    """The images uint8 [N, H, W, 3], their labels y int64 [N] and the teacher's logits [N, C] on them, not augmented.

    Where nothing needs the teacher it was not asked, and its logits are [N, 0].
    `scanned` counts the captioned images that were looked at, `unreadable` those of them that cannot be decoded.
    """

    origins: list[Origin]
    images: np.ndarray
    labels: np.ndarray
    teacher_logits: Tensor
    scanned: int
    unreadable: int

    @property
    def taught(self) -> bool:
        """Whether the teacher was asked."""
        return self.teacher_logits.shape[1] > 0

    @property
    def agreement(self) -> float | None:
        """Share of the images whose keyword names a class where the teacher's label is that class."""
        if not self.taught:
            return None
        said = self.teacher_logits.argmax(1).tolist()
        pairs = [(o.keyword, label) for o, label in zip(self.origins, said, strict=True) if o.keyword is not None]
        return sum(keyword == label for keyword, label in pairs) / len(pairs) if pairs else None

    def counts(self, num_classes: int) -> list[int]:
        """Images a class, repeats aside."""
        return np.bincount(self.labels, minlength=num_classes).tolist()

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """What `alignment_set.json` holds: where each image lies, its y, its keyword's class, the teacher's label."""
        said = [class_names[label] for label in self.teacher_logits.argmax(1).tolist()] if self.taught else None
        rows = [
            {
                "shard": origin.shard,
                "key": origin.key,
                "label": class_names[label],
                "keyword": None if origin.keyword is None else class_names[origin.keyword],
                "teacher": teacher,
            }
            for origin, label, teacher in zip(
                self.origins, self.labels.tolist(), said or [None] * len(self.origins), strict=True
            )
        ]
        return {
            "agreement": self.agreement,
            "counts": dict(zip(class_names, self.counts(len(class_names)), strict=True)),
            "scanned": self.scanned,
            "unreadable": self.unreadable,
            "images": rows,
        }


class Candidate(NamedTuple):
    """An image uint8 [H, W, 3] of the pool."""

    origin: Origin
    image: np.ndarray


class _Quota:
    """How many images each class still takes."""

    def __init__(self, num_classes: int, per_class: int) -> None:
        self.open = [per_class] * num_classes

    @property
    def left(self) -> int:
        return sum(self.open)

    def takes(self, label: int | None) -> bool:
        """Whether the class has a place left, which is then taken."""
        if label is None or not self.open[label]:
            return False
        self.open[label] -= 1
        return True


class Pool:
    """The captioned images (rows with status `ok`) in an order of the seed: shards, then images within a shard.

    Near-duplicates of test images are left out. `total` counts the captioned ones;
    `scanned` those handed out so far, `unreadable` those that the decoder refused.
    Raises UserError when a shard is not captioned.
    """

    def __init__(self, config: Config, manifest: Manifest, run: RunFolder, class_names: Sequence[str]) -> None:
        self._captions = ledger.captioned(config, manifest, run)
        self._entries = list(self._captions)
        self._manifest, self._left_out = manifest, left_out(manifest)
        self._seed, self._size = config.seed, config.data.image_size
        self._class_of = KeywordClasses(class_names)
        self.total: int = self._captions.total("n_ok")
        self.scanned = self.unreadable = 0

    def identity(self) -> dict[str, Any]:
        """What decides which images there are and in which order they come, the seed and the classes aside."""
        shards = [
            [e.shard.file, e.shard.sha256 or e.shard.index or e.shard.bytes, e.marker["output_sha256"]]
            for e in self._entries
        ]
        return {"shards": shards, "left_out": {file: sorted(keys) for file, keys in self._left_out.items()}}

    def candidates(
        self, session: Session, wanted: Callable[[int | None], bool] = lambda keyword: True
    ) -> Iterator[Candidate]:
        """The images whose keyword's class is `wanted` when their turn comes; the others are not decoded.

        Raises Stopped after a signal, before the next shard.
        """
        for number in numpy_generator(self._seed, "align shards").permutation(len(self._entries)):
            _heed(session)
            yield from self._shard(self._entries[number], wanted)

    def _shard(self, entry: Entry, wanted: Callable[[int | None], bool]) -> Iterator[Candidate]:
        shard, left_out = entry.shard, self._left_out.get(entry.shard.file, frozenset())
        # One shard's images, still encoded, lie in memory at a time, so that the order within it is free.
        pairs = joined(self._captions, self._manifest, entry)
        usable = [(sample, row) for sample, row in pairs if row.status == "ok" and row.key not in left_out]
        rows, encoded = [row for _, row in usable], {sample.key: sample.image for sample, _ in usable}
        for index in numpy_generator(self._seed, "align images", shard.file).permutation(len(rows)):
            row = rows[index]
            keyword = self._class_of(row.keyword)
            if not wanted(keyword):
                continue
            self.scanned += 1
            try:
                image = fit_square(decode(encoded[row.key]), self._size)
            except CorruptImage:
                self.unreadable += 1
                continue
            yield Candidate(Origin(shard.file, row.key, keyword), image)


def draw(config: Config, pool: Pool, class_names: Sequence[str], teacher: Teacher, session: Session) -> AlignmentSet:
    """Take `align.images_per_class` images of each class, in the pool's order, until every class is full.

    An image's class is `align.labels`: the teacher's most likely one, or the one that the crawl's keyword names. Raises
    UserError when a class gets no image at all, Stopped after a signal.
    """
    quota = _Quota(len(class_names), config.align.images_per_class)
    labelled = _by_teacher if config.align.labels == "teacher" else _by_keyword
    chosen: list[Candidate] = []
    labels: list[int] = []
    logits: list[Tensor] = []
    with session.reporter.task("alignment set", quota.left, "images") as task:
        for candidate, label, scores in labelled(pool, quota, teacher, config.align.batch_size, session):
            chosen.append(candidate)
            labels.append(label)
            logits.append(scores)
            task.advance()
    empty = [name for name, left in zip(class_names, quota.open, strict=True) if left == config.align.images_per_class]
    if empty:
        raise UserError(_nothing_of(empty, config, pool))
    return AlignmentSet(
        [candidate.origin for candidate in chosen],
        np.stack([candidate.image for candidate in chosen]),
        np.array(labels, np.int64),
        torch.stack(logits),
        pool.scanned,
        pool.unreadable,
    )


def _by_teacher(
    pool: Pool, quota: _Quota, teacher: Teacher, size: int, session: Session
) -> Iterator[tuple[Candidate, int, Tensor]]:
    for candidate, scores in _scored(pool.candidates(session), teacher, size, session):
        label = int(scores.argmax())
        if quota.takes(label):
            yield candidate, label, scores
        if not quota.left:
            return


def _by_keyword(
    pool: Pool, quota: _Quota, teacher: Teacher, size: int, session: Session
) -> Iterator[tuple[Candidate, int, Tensor]]:
    def taken() -> Iterator[Candidate]:
        for candidate in pool.candidates(session, lambda keyword: keyword is not None and quota.open[keyword] > 0):
            if quota.takes(candidate.origin.keyword):
                yield candidate
            if not quota.left:
                return

    for candidate, scores in _scored(taken(), teacher, size, session):
        label = candidate.origin.keyword
        assert label is not None, "only images with a class as keyword are taken"
        yield candidate, label, scores


def _scored(
    candidates: Iterator[Candidate], teacher: Teacher, size: int, session: Session
) -> Iterator[tuple[Candidate, Tensor]]:
    """Each candidate with the teacher's logits [C], computed in batches; raises Stopped after a signal, before one."""
    while batch := list(islice(candidates, size)):
        _heed(session)  # here, for whoever draws sees only the images of classes that have a place left
        scores = teacher(torch.from_numpy(np.stack([candidate.image for candidate in batch])))
        yield from zip(batch, scores.float().cpu(), strict=True)


def _heed(session: Session) -> None:
    if session.stop_requested:
        raise Stopped("align: stopped while drawing the alignment set; the same command draws it again")


def _nothing_of(empty: list[str], config: Config, pool: Pool) -> str:
    which = f"class {empty[0]}" + (f" (nor of {len(empty) - 1} more)" if len(empty) > 1 else "")
    if config.align.labels == "keyword":
        how, other = "has it as its keyword", "teacher"
    else:
        how, other = f"is one to the {config.align.teacher} teacher", "keyword"
    more = f" caption more than caption.max_images={config.caption.max_images}," if config.caption.max_images else ""
    return (
        f"align: no image of {which}: none of the {pool.total} captioned pool images {how};"
        f"{more} set align.labels={other}, or build the pool with a larger open_pool.reserve"
    )
