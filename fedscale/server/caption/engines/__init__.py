"""Caption engines behind one Protocol: `hf` (transformers), `vllm`, `openai` (any endpoint of that API), `template`.

An engine answers questions about images. Which questions, what a bad answer is and when to ask again is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from fedscale.config.schema import Config

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, eq=False)
class Request:
    """One question about one image, uint8 [H, W, 3] RGB. Requests about the same image hold the same tensor object.

    `history` is the conversation so far, (question, answer) by turn. Equal image, question, history, temperature
    and seed give the same answer, whatever else is asked in the same call.
    """

    key: str
    kind: str
    image: Tensor
    question: str
    history: tuple[tuple[str, str], ...] = ()
    keyword: str | None = None
    temperature: float = 0.0  # 0 = greedy
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One text. `finish` is `stop`, `length` when it was cut, or `error`, with the reason in `error` and no text.

    `tokens` counts the generated ones, the end token included.
    """

    text: str
    finish: Finish
    tokens: int
    error: str = ""


class Engine(Protocol):
    """What an engine offers. `in_flight` is how many calls of `generate` are best under way at once, from threads."""

    in_flight: int

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in the same order.

        What is wrong with one request (an image that the processor refuses) is an `error` answer. Raises UserError for
        what a person must mend (a key, a model's name), and lets a system's error (out of memory, CUDA) pass.
        """

    def close(self) -> None:
        """Let go of the model, threads and connections."""


def make_engine(config: Config) -> Engine:
    """The engine that `caption.engine` names. Raises UserError where its library or its weights are not there."""
    name = config.caption.engine
    if name == "template":
        from fedscale.server.caption.engines.template import TemplateEngine

        return TemplateEngine()
    if name == "openai":
        from fedscale.server.caption.engines.openai import OpenAIEngine
        from fedscale.server.caption.engines.reachable import check_reachable

        check_reachable(config.caption.openai.base_url)
        return OpenAIEngine(config)
    if name == "vllm":
        from fedscale.server.caption.engines.vllm import VllmEngine

        return VllmEngine(config)
    from fedscale.server.caption.engines.hf import HfEngine

    return HfEngine(config)
