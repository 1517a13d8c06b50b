"""The `vllm` engine: the MLLM of `teachers.mllm` through vLLM's offline API, tensor-parallel over GPUs where asked.

Written against vLLM 0.11 to 0.33: `LLM(...)` for its settings of offline use, of which `llm_engine` is then driven by
`add_request` and `step`, prompts as `{"prompt", "multi_modal_data"}`, `SamplingParams` with `FINAL_ONLY` outputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

from jinja2 import TemplateError
from PIL.Image import Image

from fedscale.config.schema import Config, MllmConfig
from fedscale.errors import UserError
from fedscale.models.chat import chat_text
from fedscale.models.hub import explained, local_folder, offline_where_unreachable, without_bars
from fedscale.models.mllm import KEY, MARKER
from fedscale.server.caption.engines import Answer, Request
from fedscale.server.caption.engines.own_gpus import own_gpus
from fedscale.server.caption.engines.pictures import BadImage, picture
from fedscale.server.caption.engines.vllm_loop import EngineLoop, Refused

SHOWN = 200  # characters of an error; vLLM puts the whole input into some


class VllmEngine:
    """Requests of all calls share vLLM's slots: those of the second call fill what the first one's tail leaves.

    Greedy answers are those of the model, up to rounding: vLLM's kernels add in an order that depends on the batch,
    unless its VLLM_BATCH_INVARIANT is set.
    """

    in_flight = 2

    def __init__(self, config: Config) -> None:
        with own_gpus(config.caption.vllm.tensor_parallel_size):
            self._vllm = _library()
            self._final_only = importlib.import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY
            self._max_tokens = config.caption.max_new_tokens
            self._refused: tuple[type[Exception], ...] = (BadImage, Refused, *_refusals())
            mllm, folder = config.teachers.mllm, local_folder(config.teachers.mllm.model, MARKER, KEY)
            source = str(folder) if folder else mllm.model
            with without_bars(), nullcontext() if folder else offline_where_unreachable():
                with explained(KEY, mllm.model):
                    self._processor = _processor(source, mllm)
                self._loop = EngineLoop(lambda: self._build(config, source), _refusals())

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Raises what the engine died of, in every call that waits on it and in all later ones."""
        pictures: dict[int, Image | BadImage] = {}  # by image: vLLM encodes an object that it has seen only once
        for request in requests:
            if id(request.image) not in pictures:
                pictures[id(request.image)] = _picture(request)
        futures = [self._submit(request, pictures[id(request.image)]) for request in requests]
        return [_answer(future) for future in futures]

    def close(self) -> None:
        """End vLLM, its processes included; calls that wait raise an error."""
        self._loop.close()

    def _submit(self, request: Request, shown: Image | BadImage) -> Future[Any]:
        try:
            if isinstance(shown, BadImage):
                raise shown
            prompt = {"prompt": self._prompt_text(request), "multi_modal_data": {"image": shown}}
            params = self._vllm.SamplingParams(
                temperature=request.temperature,
                seed=request.seed,
                max_tokens=self._max_tokens,
                output_kind=self._final_only,
            )
        except self._refused as error:
            refused: Future[Any] = Future()
            refused.set_exception(Refused(str(error)))
            return refused
        return self._loop.submit(prompt, params)

    def _prompt_text(self, request: Request) -> str:
        """The conversation in the model's chat form, up to where its answer begins; the image is the first thing in it.

        vLLM's tokenizer puts the begin token before a text, so a template that writes one too loses it (vllm#55197).
        Raises Refused for a conversation that the template does not take.
        """
        try:
            text = chat_text(self._processor, request.question, history=request.history)
        except (TemplateError, ValueError, TypeError) as error:
            raise Refused(f"the chat template: {error}") from None
        tokenizer = self._processor.tokenizer
        begin = tokenizer.bos_token
        doubled = begin and text.startswith(begin) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        return text.removeprefix(begin) if doubled else text

    def _build(self, config: Config, source: str) -> Any:
        mllm, settings = config.teachers.mllm, config.caption.vllm
        try:
            llm = self._vllm.LLM(
                model=source,
                revision=mllm.revision,
                dtype=mllm.dtype,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_model_len=settings.max_model_len or None,
                limit_mm_per_prompt={"image": 1, "video": 0},
            )
        except _refusals() as error:
            raise UserError(
                f"caption.engine=vllm: vLLM does not take {KEY}={mllm.model} with these settings ({_line(error)}); "
                f"expected a model that it supports and caption.vllm.* that fit the GPUs, or use caption.engine=hf"
            ) from error
        return llm.llm_engine


def _library() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"caption.engine=vllm: vLLM cannot be imported ({_line(error)}); run `pip install 'mllm-fedscale[vllm]'`, "
            f"in an environment of its own, for vLLM brings a torch of its own"
        ) from None


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises of one request: ValueError, and since 0.33 errors of its own that are none."""
    try:
        return (ValueError, importlib.import_module("vllm.exceptions").VLLMClientError)
    except (ImportError, AttributeError):
        return (ValueError,)


def _processor(source: str, mllm: MllmConfig) -> Any:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(source, revision=mllm.revision)
    if not getattr(processor, "chat_template", None):
        raise UserError(f"{KEY}={mllm.model}: its processor has no chat template; expected a model tuned to chat")
    return processor


def _picture(request: Request) -> Image | BadImage:
    try:
        return picture(request.image)
    except BadImage as error:
        return error


def _answer(future: Future[Any]) -> Answer:
    try:
        text = future.result().outputs[0]
    except Refused as error:
        return Answer("", "error", 0, _line(error))
    if text.finish_reason not in ("stop", "length"):  # abort, error, repetition
        return Answer("", "error", 0, f"vLLM ended the text with finish_reason={text.finish_reason}")
    return Answer(text.text.strip(), text.finish_reason, len(text.token_ids))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:SHOWN] or type(error).__name__
