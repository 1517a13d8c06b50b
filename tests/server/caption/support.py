"""A small pool of shards, a config that captions it, and an engine that answers as it is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fedscale.config.schema import Config
from fedscale.data.images import encode_png
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, run, sidecar
from fedscale.server.caption.engines import Answer
from fedscale.server.caption.rows import Row
from fedscale.session import Session

WORDS = ("circle", "arrow")


def sample(number: int, image: bytes | None = None, keyword: str | None = None) -> Sample:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Sample(f"{number:08d}", image or encode_png(pixels), "png", keyword=keyword or WORDS[number % 2])


def make_pool(root: Path, shards: list[list[Sample]]) -> Manifest:
    infos = []
    for number, samples in enumerate(shards):
        file = f"pool/{number:05d}.tar"
        written = write_shard(root / file, samples)
        infos.append(ShardInfo(file, written.samples, written.bytes, written.sha256, {}))
    manifest = Manifest(root, "pool", WORDS, "f" * 16, {"pool": tuple(infos)}, {})
    manifest.save()
    return manifest


class FakeEngine:
    """Answers every question with the keyword, counts its calls, and may misbehave as told.

    `answers` by key replaces the answer; a callable there gets the request. `stop_after` asks for a stop in that call.
    """

    in_flight = 1

    def __init__(self, session: Session, stop_after: int = 0, answers: dict[str, Any] | None = None) -> None:
        self.session, self.stop_after, self.answers = session, stop_after, answers or {}
        self.calls = 0
        self.requests: list[Any] = []
        self.closed = False

    def generate(self, requests):
        self.calls += 1
        self.requests += requests
        if self.calls == self.stop_after:
            self.session.stop.set()
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        self.closed = True

    def _answer(self, request) -> Answer:
        told = self.answers.get(request.key, Answer(f"a {request.keyword}", "stop", 3))
        return told(request) if callable(told) else told


class Captioned:
    """One pool and the run that captions it."""

    def __init__(self, manifest: Manifest, folder: Path, **settings: Any) -> None:
        self.manifest, self.run, self.settings = manifest, RunFolder(folder), settings

    def config(self, **settings: Any) -> Config:
        config = Config(name="t")
        data = dataclasses.replace(config.data, dir=str(self.manifest.root), max_corrupt=0.05)
        caption = {"engine": "template", "flush_every": 2, **self.settings, **settings}
        return dataclasses.replace(config, data=data, caption=dataclasses.replace(config.caption, **caption))

    def caption(self, session: Session | None = None, retry_failed: bool = False, **settings: Any) -> dict | None:
        return run(self.config(**settings), self.run, session or Session(), retry_failed=retry_failed)

    @property
    def folder(self) -> Path:
        return self.run.stage("caption")

    def rows(self, number: int = 0, **settings: Any) -> list[Row]:
        config = self.config(**settings)
        where, shard = sidecar.storage(config, self.run), self.manifest.shards("pool")[number]
        (entry,) = ledger.scan(where, [shard], sidecar.settings(config))
        assert entry.state == "done", entry
        return sidecar.read(where, shard, entry.marker)
