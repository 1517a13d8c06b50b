"""Caption one shard: read and decode ahead in threads, caption by the group, keep a journal, publish.

Three classes of error: a sample's becomes a row, a shard's (truncated, unreadable, not the manifest's) a ShardError,
and a system's (out of memory, full disk) passes and ends the worker.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from fedscale.config.schema import CaptionConfig
from fedscale.data.images import CorruptImage, TooLarge, decode, pixels_of, threaded
from fedscale.data.manifest import ShardInfo
from fedscale.data.members import Contents
from fedscale.data.shards import Sample, read_shard
from fedscale.data.tar import BrokenShard
from fedscale.errors import Stopped, UserError
from fedscale.server.caption.captioner import Captioner, Item
from fedscale.server.caption.engines import Engine
from fedscale.server.caption.journal import Journal
from fedscale.server.caption.rows import TEXT_STATUSES, Row

GROUP_PIXELS = 2**27  # decoded at once: 400 MB


class ShardError(Exception):
    """A shard that cannot be captioned; its text is the reason. `unread`: it could not be read, and may be whole."""

    def __init__(self, reason: str, unread: bool = False) -> None:
        super().__init__(reason)
        self.unread = unread


@dataclass(frozen=True)
class Task:
    """One shard to caption: where it lies, keys left out as near-duplicates, rows of an earlier run to try again."""

    shard: ShardInfo
    url: str
    near_duplicates: frozenset[str] = frozenset()
    earlier: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True)
class Captioned:
    """A captioned shard: all rows in input order, the SHA-256 of the input as read, seconds by stage."""

    rows: list[Row]
    sha256: str
    seconds: dict[str, float]


class ShardCaptioner:
    """Captions one shard after another with one engine.

    `advance` is told how many images are done.
    """

    def __init__(self, config: CaptionConfig, engine: Engine, advance: Callable[[int], None]) -> None:
        self._config, self._advance = config, advance
        self._captioner, self._in_flight = Captioner(config, engine), engine.in_flight
        self._fuse = Fuse(config.fuse)

    def caption(self, task: Task, journal: Journal, interrupted: Callable[[], str]) -> Captioned:
        """Caption a shard; groups that the journal holds already are not done again.

        `interrupted` gives a reason to stop, or "". Raises ShardError; Stopped with all finished groups in the journal;
        UserError when `caption.fuse` images in a row, of this shard and those before it, failed at the engine.
        """
        seconds, digest, contents = {"read": 0.0, "generate": 0.0}, hashlib.sha256(), Contents()
        keys: list[str] = []
        samples = _checked(read_shard(task.url, digest=digest, contents=contents))
        groups = _groups(samples, task, self._config, journal, keys)
        with ThreadPoolExecutor(1, "read") as reader, self._askers() as ask:
            under_way: deque[Callable[[], list[Row]]] = deque()
            ahead: Future[list[Item] | None] | None = reader.submit(next, groups, None)
            while ahead or under_way:
                if reason := interrupted():
                    while under_way:  # what was asked already is worth keeping
                        journal.add(under_way.popleft()())
                    raise Stopped(reason)
                while ahead and len(under_way) < self._in_flight:
                    began = time.perf_counter()
                    group = ahead.result()
                    seconds["read"] += time.perf_counter() - began
                    ahead = reader.submit(next, groups, None) if group else None  # decoded while the engine works
                    if group:
                        under_way.append(ask(group))
                if under_way:
                    began = time.perf_counter()
                    rows = under_way.popleft()()
                    seconds["generate"] += time.perf_counter() - began
                    journal.add(rows)
                    self._fuse.burn(rows, journal)
                    self._advance(len(rows))
        _check(task.shard, contents, digest.hexdigest())
        return Captioned([journal.rows[key] for key in keys], digest.hexdigest(), seconds)

    @contextmanager
    def _askers(self) -> Iterator[Callable[[list[Item]], Callable[[], list[Row]]]]:
        """`ask(group)` gives what to call for the group's rows.

        One call at a time is made in the main thread, where a second Ctrl-C ends it at once; several run in threads.
        """
        if self._in_flight == 1:
            yield lambda group: partial(self._captioner.rows, group)
            return
        pool = ThreadPoolExecutor(self._in_flight, "caption")
        try:
            yield lambda group: pool.submit(self._captioner.rows, group).result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an engine that is closed ends what is under way


class Fuse:
    """Blows when too many images in a row failed at the engine: then it is the engine that is broken, not they."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failed: list[str] = []

    def burn(self, rows: Sequence[Row], journal: Journal) -> None:
        """Take note of a finished group. Raises UserError when it blows; the failed rows then leave the journal."""
        last = ""
        for row in rows:
            if row.status in TEXT_STATUSES:
                self._failed = [*self._failed, row.key] if row.status == "generation_error" else []
                last = row.error
        if len(self._failed) >= self._limit:
            journal.forget([key for key in self._failed if key in journal.rows])
            raise UserError(
                f"caption: the engine failed at {len(self._failed)} images in a row (the last: {last}); "
                "mend it, or raise caption.fuse; finished rows are kept, and --retry-failed mends shards done before"
            )


def _check(shard: ShardInfo, contents: Contents, sha256: str) -> None:
    if contents.samples != shard.samples:
        raise ShardError(f"holds {contents.samples} samples, the manifest says {shard.samples}")
    if shard.sha256 and sha256 != shard.sha256:
        raise ShardError(f"sha256 is {sha256[:12]}…, the manifest says {shard.sha256[:12]}…")
    if shard.index and contents.index != shard.index:
        raise ShardError(f"the index of its members is {contents.index}, the manifest says {shard.index}")


def _groups(
    samples: Iterator[Sample], task: Task, config: CaptionConfig, journal: Journal, keys: list[str]
) -> Iterator[list[Item]]:
    """The images to caption, in groups; all keys of the shard are appended to `keys`."""
    # The journal grows while this runs ahead of it: what was done before is fixed at the beginning.
    done = frozenset(journal.rows)
    for window in _windows(samples, config):
        keys += [sample.key for sample in window]
        fresh = [sample for sample in window if sample.key not in done]
        if fresh:
            yield [
                _item(sample, image, task)
                for sample, image in threaded(lambda sample: _decoded(sample, task, config), fresh)
            ]


def _windows(samples: Iterator[Sample], config: CaptionConfig) -> Iterator[list[Sample]]:
    """The shard cut into groups: `caption.flush_every` images at most, and GROUP_PIXELS by their headers.

    By position in the shard alone, so that they are the same groups after a crash; two are decoded at a time.
    """
    window: list[Sample] = []
    held = 0
    for sample in samples:
        pixels = min(pixels_of(sample.image), config.max_pixels)
        if window and (len(window) == config.flush_every or held + pixels > GROUP_PIXELS):
            yield window
            window, held = [], 0
        window.append(sample)
        held += pixels
    if window:
        yield window


def _checked(samples: Iterator[Sample]) -> Iterator[Sample]:
    """The samples; what is wrong with the reading is the shard's error, not the user's or the system's."""
    try:
        yield from samples
    except BrokenShard as error:
        raise ShardError(" ".join(str(error).split())) from error
    except (UserError, OSError) as error:
        raise ShardError(" ".join(str(error).split()), unread=True) from error


def _decoded(sample: Sample, task: Task, config: CaptionConfig) -> torch.Tensor | Row:
    if sample.key in task.near_duplicates:
        return Row(sample.key, "near_duplicate", sample.keyword)
    if sample.too_large:
        return Row(sample.key, "too_large", sample.keyword, error=sample.too_large)
    try:
        return torch.from_numpy(np.array(decode(sample.image, config.max_pixels).convert("RGB")))
    except TooLarge as error:
        return Row(sample.key, "too_large", sample.keyword, error=str(error))
    except CorruptImage as error:
        return Row(sample.key, "decode_error", sample.keyword, error=str(error))


def _item(sample: Sample, image: torch.Tensor | Row, task: Task) -> Item:
    if isinstance(image, Row):
        return Item(sample.key, sample.keyword, None, image)
    earlier = task.earlier.get(sample.key)
    return Item(sample.key, sample.keyword, image, attempts=dict(earlier.attempts) if earlier else {})
