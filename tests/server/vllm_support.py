"""A `vllm` module for machines without GPUs: the documented names and signatures that we use, and nothing beyond them.

Signatures as in vLLM 0.33 (`entrypoints/llm.py`, `v1/engine/llm_engine.py`, `sampling_params.py`, `outputs.py`), less
what we leave alone: an unknown keyword is a TypeError here. The engine decodes one token a request and step, with
`max_num_seqs` slots refilled as texts end, and insists on being called from one thread.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
import sys
import threading
import types
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

END = 2  # the id of the end token


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class VLLMClientError(Exception):
    """Since 0.33 no ValueError."""


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise VLLMClientError(f"temperature must be in [0, 2], got {self.temperature}.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise OverflowError("seed")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: Any = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class _Running:
    name: str
    prompt: dict[str, Any]
    params: SamplingParams
    words: list[str]
    finish: str
    done: int = 0

    def output(self) -> RequestOutput:
        ids = list(range(10, 10 + self.done))
        finished = self.done >= len(self.words) + (self.finish == "stop")
        if finished and self.finish == "stop":
            ids[-1] = END
        text = "".join(f" {word}" for word in self.words[: self.done])
        made = CompletionOutput(0, text, ids, finish_reason=self.finish if finished else None)
        return RequestOutput(self.name, self.prompt["prompt"], [1], [made], finished)


@dataclass
class Plan:
    """What the fake does out of the ordinary, by words in a prompt; and what it saw."""

    max_num_seqs: int = 4
    ends: dict[str, str] = field(default_factory=dict)  # word in the prompt → finish_reason
    refusals: dict[str, Exception] = field(default_factory=dict)  # word in the prompt → what add_request raises
    after: dict[str, str] = field(default_factory=dict)  # a text that ends only once the text of another prompt has
    build_error: Exception | None = None
    step_error: Exception | None = None  # what the engine dies of, once `dies_when` many requests run
    dies_when: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    visible: str | None = None  # CUDA_VISIBLE_DEVICES as the engine was built
    prompts: list[dict[str, Any]] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    steps: list[list[str]] = field(default_factory=list)  # the prompts that ran in each step
    stepped: threading.Event = field(default_factory=threading.Event)
    shut_down: int = 0


class _Core:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def shutdown(self, timeout: float | None = None) -> None:
        self._plan.shut_down += 1


class LLMEngine:
    def __init__(self, plan: Plan) -> None:
        self._plan, self._thread = plan, threading.get_ident()
        self.engine_core = _Core(plan)
        self._queued: list[_Running] = []
        self._running: list[_Running] = []
        self._ended: list[str] = []

    def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams,
        arrival_time: float | None = None,
        lora_request: Any = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Any = None,
        priority: int = 0,
    ) -> str:
        assert threading.get_ident() == self._thread, "vLLM's engine is not thread-safe"
        if not isinstance(request_id, str):
            raise TypeError(f"request_id must be a string, got {type(request_id)}")
        assert request_id not in {one.name for one in (*self._queued, *self._running)}
        assert set(prompt) == {"prompt", "multi_modal_data"} and set(prompt["multi_modal_data"]) == {"image"}
        image = prompt["multi_modal_data"]["image"]
        assert isinstance(image, Image.Image) and image.mode == "RGB" and prompt["prompt"].count("<image>") == 1
        self._plan.prompts.append(prompt)
        self._plan.params.append(params)
        for word, error in self._plan.refusals.items():
            if word in prompt["prompt"]:
                raise error
        self._queued.append(self._made(request_id, prompt, dataclasses.replace(params), image))
        return request_id

    def _made(self, name: str, prompt: dict[str, Any], params: SamplingParams, image: Image.Image) -> _Running:
        asked = repr((prompt["prompt"], params.temperature, params.seed if params.temperature else None)).encode()
        digest = hashlib.sha256(asked + image.tobytes()).hexdigest()
        words, finish = [digest[i : i + 4] for i in range(4 * (1 + int(digest[0], 16) % 5))][:5], "stop"
        for word, reason in self._plan.ends.items():
            if word in prompt["prompt"]:
                finish = reason
        if len(words) >= (params.max_tokens or 2**31):
            words, finish = words[: params.max_tokens], "length"
        return _Running(name, prompt, params, words, finish)

    def has_unfinished_requests(self) -> bool:
        return bool(self._queued or self._running)

    def step(self) -> list[RequestOutput]:
        assert threading.get_ident() == self._thread, "vLLM's engine is not thread-safe"
        assert self.has_unfinished_requests(), "vLLM would wait here for ever"
        free = self._plan.max_num_seqs - len(self._running)
        self._running += self._queued[:free]
        del self._queued[:free]
        self._plan.steps.append([one.prompt["prompt"] for one in self._running])
        self._plan.stepped.set()
        if self._plan.step_error and len(self._running) >= self._plan.dies_when:
            raise self._plan.step_error
        outputs = []
        for one in list(self._running):
            if any(
                word in one.prompt["prompt"] and not self._has_ended(first) for word, first in self._plan.after.items()
            ):
                continue
            one.done += 1
            output = one.output()
            if output.finished:
                self._running.remove(one)
                self._ended.append(one.prompt["prompt"])
            if output.finished or one.params.output_kind is not RequestOutputKind.FINAL_ONLY:
                outputs.append(output)
        return outputs

    def _has_ended(self, word: str) -> bool:
        return any(word in prompt for prompt in self._ended)


def install(monkeypatch: Any, plan: Plan, old: bool = False) -> None:
    """Make `import vllm` find the fake. Its submodules are no attributes until imported, as vLLM's are not; up to 0.11
    (`old`) there is no vllm.exceptions."""

    class LLM:
        def __init__(
            self,
            model: str,
            *,
            revision: str | None = None,
            dtype: str = "auto",
            seed: int = 0,
            tensor_parallel_size: int = 1,
            gpu_memory_utilization: float = 0.92,
            max_model_len: int | None = None,
            limit_mm_per_prompt: dict[str, int] | None = None,
        ) -> None:
            plan.visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            plan.settings = {key: value for key, value in locals().items() if key not in ("self", "__class__", "plan")}
            if plan.build_error:
                raise plan.build_error
            self.llm_engine = LLMEngine(plan)

    top, sampling, errors = (types.ModuleType(f"vllm{name}") for name in ("", ".sampling_params", ".exceptions"))
    top.LLM, top.SamplingParams, top.__path__ = LLM, SamplingParams, []  # type: ignore[attr-defined]
    sampling.RequestOutputKind, sampling.SamplingParams = RequestOutputKind, SamplingParams  # type: ignore[attr-defined]
    errors.VLLMClientError = VLLMClientError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", top)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setitem(sys.modules, "vllm.exceptions", None if old else errors)
