"""The `hf` engine: a LLaVA-family model through transformers, a whole replica a process, no collectives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from fedscale.config.schema import Config
from fedscale.device import pick_device
from fedscale.models.mllm import Mllm, load_mllm
from fedscale.rng import derive
from fedscale.server.caption.engines import Answer, Request


class HfEngine:
    """Asks the MLLM the prompt of each kind about each image."""

    def __init__(self, config: Config, mllm: Mllm | None = None) -> None:
        self._config = config.caption
        self._mllm = mllm or load_mllm(config.teachers.mllm, pick_device(config))

    def answer(self, requests: Sequence[Request]) -> list[dict[str, Answer]]:
        """Images of equal size share a batch. Sampling is seeded by (seed, kind, first key): a rerun draws the same."""
        answers: list[dict[str, Answer]] = [{} for _ in requests]
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            by_size[tuple(request.image.shape)].append(index)
        for indices in by_size.values():
            images = torch.stack([requests[i].image for i in indices])
            for kind in self._config.kinds:
                generated = self._mllm.generate(
                    images,
                    [getattr(self._config.prompts, kind)] * len(indices),
                    max_new_tokens=self._config.max_new_tokens,
                    temperature=self._config.temperature,
                    seed=derive(self._config.seed, "caption", kind, requests[indices[0]].key),
                )
                for index, one in zip(indices, generated, strict=True):
                    answers[index][kind] = Answer(one.text.strip(), one.finish, one.tokens)
        return answers
