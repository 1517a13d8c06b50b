"""The `hf` engine: a model of the LLaVA family through transformers, a whole replica a process, no collectives."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError

from fedscale.config.schema import Config
from fedscale.device import pick_device
from fedscale.models.generation import Prompt
from fedscale.models.mllm import Mllm, load_mllm
from fedscale.server.caption.engines import Answer, Request


class HfEngine:
    """Asks the MLLM, `caption.batch_size` requests under way at once, whatever their images and questions."""

    in_flight = 1  # the slots of one call fill the GPU

    def __init__(self, config: Config, mllm: Mllm | None = None) -> None:
        self._config = config.caption
        self._mllm: Mllm | None = mllm or load_mllm(config.teachers.mllm, pick_device(config))

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in the same order; features of images are kept for calls that show them again."""
        if self._mllm is None:
            raise AssertionError("the engine is closed")
        prompts: dict[int, Prompt] = {}
        answers: dict[int, Answer] = {}
        for index, request in enumerate(requests):
            try:
                text = self._mllm.prompt_text(request.question, history=request.history)
            except (TemplateError, ValueError, TypeError) as error:  # a template may refuse a history
                answers[index] = Answer("", "error", 0, " ".join(f"{type(error).__name__}: {error}".split()))
                continue
            limit = self._config.max_new_tokens
            prompts[index] = Prompt(request.image, text, limit, request.temperature, request.seed)
        found = self._mllm.generator.generate(list(prompts.values()), self._config.batch_size)
        for index, one in zip(prompts, found, strict=True):
            answers[index] = Answer(one.text, one.finish, one.tokens, one.error)
        return [answers[index] for index in range(len(requests))]

    def close(self) -> None:
        """Let go of the model, and of the images' features."""
        if self._mllm is not None:
            self._mllm.forget_images()
        self._mllm = None
