"""Static batches through `model.generate`: slower than the loop, and right for whatever transformers can generate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from fedscale.models.generation.prompts import REFUSALS, Generated, Prompt, Tokens, refusal
from fedscale.models.generation.sampling import Sampler


class _Draws(LogitsProcessor):
    """Makes the greedy choice a draw of each row's own temperature and seed."""

    def __init__(self, sampler: Sampler, prompt: int) -> None:
        self._sampler, self._prompt = sampler, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        steps = torch.full((len(scores),), input_ids.shape[1] - self._prompt, device=scores.device)
        return self._sampler.scores(scores, steps)


def generate_plainly(
    model: Any, processor: Any, tokens: Tokens, device: torch.device, prompts: Sequence[Prompt], batch_size: int
) -> list[Generated]:
    """One answer a prompt, in the same order. Images of one size and prompts of one length share a batch."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        length = len(tokens.tokenizer(prompt.text)["input_ids"])
        alike[*prompt.image.shape, length, prompt.max_new_tokens].append(index)
    answers: dict[int, Generated] = {}
    for indices in alike.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            found = _answers(model, processor, tokens, device, [prompts[index] for index in batch])
            answers |= dict(zip(batch, found, strict=True))
    return [answers[index] for index in range(len(prompts))]


def _answers(
    model: Any, processor: Any, tokens: Tokens, device: torch.device, prompts: list[Prompt]
) -> list[Generated]:
    try:
        pixels = [prompt.image.permute(2, 0, 1) for prompt in prompts]
        texts = [prompt.text for prompt in prompts]
        inputs = processor(images=[[one] for one in pixels], text=texts, padding=True, return_tensors="pt")
    except REFUSALS as error:
        if len(prompts) == 1:
            return [refusal(error)]
        return [answer for prompt in prompts for answer in _answers(model, processor, tokens, device, [prompt])]
    inputs = inputs.to(device, dtype=model.dtype)
    # An encoder with a decoder gives the answer behind its own start token, the others behind the prompt.
    before = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    sampler = Sampler([prompt.temperature for prompt in prompts], [prompt.seed for prompt in prompts], device)
    out = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=prompts[0].max_new_tokens,
        pad_token_id=tokens.tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList([_Draws(sampler, before)]),
    )
    return [tokens.generated(row) for row in out[:, before:].tolist()]
