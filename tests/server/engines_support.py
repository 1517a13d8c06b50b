"""What the tests of all caption engines share: small configs, requests, and calls from several threads."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fedscale.config.schema import Config
from fedscale.server.caption.engines import Answer, Engine, Request

LLAVA = "teachers/shapes/llava"  # the tiny one, trained from scratch, that comes with the package


def engine_config(
    engine: str, *, model: str = LLAVA, sections: dict[str, dict] | None = None, **caption: Any
) -> Config:
    """A config of that engine; `sections` sets keys of caption.openai and caption.vllm."""
    config = Config(name="t", device="cpu")
    mllm = dataclasses.replace(config.teachers.mllm, model=model)
    nested = {
        name: dataclasses.replace(getattr(config.caption, name), **keys) for name, keys in (sections or {}).items()
    }
    return dataclasses.replace(
        config,
        teachers=dataclasses.replace(config.teachers, mllm=mllm),
        caption=dataclasses.replace(config.caption, engine=engine, **nested, **caption),
    )


def image(seed: int, height: int = 16, width: int = 16) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


def request(number: int, **changes: Any) -> Request:
    made = Request(
        f"{number:08d}", "description", image(number), f"What is shown in picture {number}?", keyword="circle"
    )
    return dataclasses.replace(made, **changes)


def requests(count: int, **changes: Any) -> list[Request]:
    return [request(number, **changes) for number in range(count)]


def call_together(engine: Engine, calls: Sequence[Sequence[Request]]) -> list[list[Answer]]:
    """The answers of calls that begin at the same time, each in a thread of its own."""
    start = threading.Barrier(len(calls))

    def call(asked: Sequence[Request]) -> list[Answer]:
        start.wait()
        return engine.generate(asked)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


class Calling(threading.Thread):
    """A call of `generate` that runs beside the test; `outcome()` gives its answers, or raises what it raised."""

    def __init__(self, engine: Engine, asked: Sequence[Request]) -> None:
        super().__init__(daemon=True)
        self._engine, self._asked = engine, asked
        self._answers: list[Answer] = []
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answers = self._engine.generate(self._asked)
        except BaseException as error:
            self._error = error

    def outcome(self) -> list[Answer]:
        self.join(30)
        assert not self.is_alive(), "the call hangs"
        if self._error:
            raise self._error
        return self._answers
