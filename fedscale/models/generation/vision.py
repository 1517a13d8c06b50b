"""Images to features, once each, by the model's own `get_image_features`; kept while the same tensors come again."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fedscale.models.generation.prompts import REFUSALS, Encoded, Generated, Tokens, Unsupported, refusal

CHUNK = 32  # images that are processed, and encoded, at once
AHEAD = 2  # chunks that a thread processes while the model is at work
KEPT = 2 * 2**30  # bytes of features that are kept for later calls: some 450 images of LLaVA-1.5

Prepared = tuple[list[Tensor], Any, list[tuple[int, ...]]]  # images, what the processor made of them, their blocks


class Images:
    """Features by tensor identity, the oldest let go of; `encoded` images went through the tower, `bytes` are kept."""

    def __init__(self, model: Any, processor: Any, tokens: Tokens, device: torch.device) -> None:
        self.encoded = self.bytes = 0
        self._model, self._processor, self._tokens, self._device = model, processor, tokens, device
        self._kept: OrderedDict[int, tuple[Tensor, Encoded]] = OrderedDict()  # holds the tensor, so an id stays its

    def clear(self) -> None:
        """Let go of all features."""
        self._kept.clear()
        self.bytes = 0

    def stream(self, images: Sequence[Tensor]) -> Iterator[list[tuple[Tensor, Encoded | Generated]]]:
        """The images in order, in chunks: encoded, or the answer that says why an image cannot be.

        A thread resizes and normalises the next chunks while the caller uses this one.
        """
        chunks = [list(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
        pool = ThreadPoolExecutor(1)
        try:
            ahead: deque[Future] = deque()
            for number, chunk in enumerate(chunks):
                for later in chunks[number + len(ahead) : number + 1 + AHEAD]:
                    new = [image for image in later if id(image) not in self._kept]
                    ahead.append(pool.submit(self._prepare, new))
                yield self._chunk(chunk, *ahead.popleft().result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def of(self, image: Tensor) -> Encoded | Generated:
        """One image."""
        return next(self.stream([image]))[0][1]

    def _chunk(
        self, chunk: list[Tensor], prepared: list[Prepared], refused: dict[int, Generated]
    ) -> list[tuple[Tensor, Encoded | Generated]]:
        found: dict[int, Encoded | Generated] = dict(refused)
        for group in prepared:
            for image, encoded in zip(group[0], self._encode(*group), strict=True):
                self._kept[id(image)] = (image, encoded)
                self.bytes += encoded.features.nbytes
        for image in chunk:
            if id(image) in self._kept:
                self._kept.move_to_end(id(image))
                found[id(image)] = self._kept[id(image)][1]
            elif id(image) not in found:  # was kept when the chunk was planned, and had to go since
                found[id(image)] = self.of(image)
        while self.bytes > KEPT:
            self.bytes -= self._kept.popitem(last=False)[1][1].features.nbytes
        return [(image, found[id(image)]) for image in chunk]

    def _prepare(self, images: list[Tensor]) -> tuple[list[Prepared], dict[int, Generated]]:
        """All at once; where the processor refuses, each for itself, with the answers of those that it refuses."""
        if not images:
            return [], {}
        try:
            return [self._processed(images)], {}
        except REFUSALS as error:
            if len(images) == 1:
                return [], {id(images[0]): refusal(error)}
        prepared: list[Prepared] = []
        refused: dict[int, Generated] = {}
        for image in images:
            one, why = self._prepare([image])
            prepared += one
            refused |= why
        return prepared, refused

    def _processed(self, images: list[Tensor]) -> Prepared:
        if any(image.numel() == 0 for image in images):
            raise ValueError("an image without pixels")
        text = [self._tokens.image_text] * len(images)
        pixels = [image.permute(2, 0, 1) for image in images]
        inputs = self._processor(images=pixels, text=text, padding=True, return_tensors="pt")
        rows = zip(inputs.pop("input_ids"), inputs.pop("attention_mask").bool(), strict=True)
        return images, inputs, [self._tokens.block(ids[mask].tolist()) for ids, mask in rows]

    def _encode(self, images: list[Tensor], inputs: Any, blocks: list[tuple[int, ...]]) -> list[Encoded]:
        visual = inputs.to(self._device, dtype=self._model.dtype)  # only floats change their dtype
        try:
            found = self._model.get_image_features(**visual, return_dict=True)
        except REFUSALS as error:
            raise Unsupported(f"its get_image_features fails ({refusal(error).error})") from error
        features = list(getattr(found, "pooler_output", found))
        self.encoded += len(images)
        if [len(one) for one in features] != [block.count(self._tokens.image) for block in blocks]:
            raise Unsupported("its get_image_features does not give one feature an image token, by image")
        # Clones: a view would keep the whole chunk's features alive as long as any of them.
        return [Encoded(one.clone(), block) for one, block in zip(features, blocks, strict=True)]
