"""Prompts to answers by one model: through the loop where that is right, through `model.generate` where it is not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from fedscale.models.generation.loop import REFILL_SHARE, Loop, Steps
from fedscale.models.generation.plain import generate_plainly
from fedscale.models.generation.prefill import Decoder
from fedscale.models.generation.prompts import REFUSALS, Generated, Prompt, Row, Tokens, Unsupported, refusal
from fedscale.models.generation.support import against, probe
from fedscale.models.generation.vision import Images


class Generator:
    """A model and its processor. `steps` counts what the loop has done; features of images stay for later calls."""

    def __init__(self, model: Any, processor: Any, device: torch.device, refill_share: float = REFILL_SHARE) -> None:
        self.steps = Steps()
        self.refill_share = refill_share
        self._model, self._processor, self._device = model, processor, device
        self._tokens = Tokens(model, processor)
        self._against = against(model)
        if self._against:
            self._warn(self._against)
        else:
            self._decoder = Decoder(model)
            self.images = Images(model, processor, self._tokens, device)
        self._probed = bool(self._against)

    def close(self) -> None:
        """Let go of the images' features."""
        if not self._against:
            self.images.clear()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], batch_size: int) -> list[Generated]:
        """One answer a prompt, in the same order, `batch_size` of them under way at once.

        A prompt or an image that the processor refuses is an `error` answer; out of memory and CUDA errors are raised.
        Where the loop is not right for the model, the batches go through `model.generate`, which one warning says.
        """
        if not self._probed:
            self._probe(prompts)
        if self._against:
            return generate_plainly(self._model, self._processor, self._tokens, self._device, prompts, batch_size)
        loop = Loop(self._decoder, self._tokens, self.images, prompts, batch_size, self.refill_share, self.steps)
        return loop.run()

    def _probe(self, prompts: Sequence[Prompt]) -> None:
        """Try the loop on the first prompt that the processor does not refuse: what it refuses tells nothing."""
        for prompt in prompts:
            try:
                pixels = prompt.image.permute(2, 0, 1)
                inputs = self._processor(images=[pixels], text=[prompt.text], padding=True, return_tensors="pt")
            except REFUSALS as error:
                refusal(error)
                continue
            self._against = self._found(prompt, inputs)
            self._probed = True
            break
        if self._against:
            self._warn(self._against)

    def _found(self, prompt: Prompt, inputs: Any) -> str | None:
        try:
            encoded = self.images.of(prompt.image)
            if isinstance(encoded, Generated):
                return f"its processor takes no image token alone ({encoded.error})"
            ids, shared = self._tokens.expanded(self._tokens.tokenizer(prompt.text)["input_ids"], encoded)
        except (Unsupported, ValueError) as error:
            return str(error)
        return probe(self._model, inputs, self._decoder, self._tokens.image, Row(0, prompt, ids, shared, encoded))

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"{type(self._model).__name__}: {reason}; captioning by model.generate in static batches, which is slower",
            stacklevel=4,
        )
