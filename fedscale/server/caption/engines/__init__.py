"""Caption engines behind one Protocol: `hf` (an MLLM through transformers) and `template` (the crawl keyword alone)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedscale.config.schema import Config


@dataclass(frozen=True)
class Request:
    """One image, uint8 [H, W, 3] RGB, to be captioned."""

    key: str
    image: Tensor
    keyword: str | None


@dataclass(frozen=True)
class Answer:
    """One text. `finish` is `stop`, or `length` when it was cut; `tokens` counts the generated ones."""

    text: str
    finish: str
    tokens: int


class Engine(Protocol):
    """Writes the texts of every kind that the config asks for."""

    def answer(self, requests: Sequence[Request]) -> list[dict[str, Answer]]:
        """Answers by kind, for each request, in the same order. Raises what the model raises: never a partial list."""


def make_engine(config: Config) -> Engine:
    """The engine that `caption.engine` names."""
    if config.caption.engine == "template":
        from fedscale.server.caption.engines.template import TemplateEngine

        return TemplateEngine(config.caption)
    from fedscale.server.caption.engines.hf import HfEngine

    return HfEngine(config)
