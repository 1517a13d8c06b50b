"""Prompts into a cache: what the prompts of one image share, the image above all, is computed once and repeated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedscale.models.cache_word import cache_word
from fedscale.models.generation.prompts import Encoded, Row
from fedscale.models.generation.slots import SlotCache

PREFILL_TOKENS = 2**14  # of one forward pass: enough to fill a GPU, few enough to bound what a pass allocates

Key = tuple[int, tuple[int, ...]]  # an image, and the ids up to its end


class Decoder:
    """The model, as one forward pass over new tokens behind what a cache holds."""

    def __init__(self, model: Any) -> None:
        self.embed = model.get_input_embeddings()
        self.device = self.embed.weight.device  # the first one of a model that lies on several
        self._model, self._cache_word = model, cache_word(model)
        self._adds_mask = model.config.get_text_config()._attn_implementation == "eager"

    def __call__(self, cache: SlotCache, lengths: Sequence[int], positions: Tensor, **tokens: Tensor) -> Tensor:
        """The last logits, float32 [B, V], behind `lengths[row]` new tokens a row, right-aligned, q at most.

        `tokens` is `input_ids` [B, q] or `inputs_embeds` [B, q, D]; positions are int64 [B, q].
        """
        seen = cache.append(lengths)
        if seen is not None and self._adds_mask:
            lowest = torch.finfo(self._model.dtype).min
            seen = torch.zeros(seen.shape, dtype=self._model.dtype, device=seen.device).masked_fill(~seen, lowest)
        out = self._model(
            **tokens,
            position_ids=positions,
            attention_mask=seen,  # four-dimensional, which transformers takes as it is
            **{self._cache_word: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        cache.advance(positions.shape[1])
        return out.logits[:, -1].float()


class Prefill:
    """Caches of prompts. The prefix of an image whose prompts are not all under way yet is held for the next ones."""

    def __init__(self, decoder: Decoder, image_token: int) -> None:
        self._decoder, self._image_token = decoder, image_token
        self._held: dict[Key, SlotCache] = {}

    def __call__(self, rows: Sequence[Row], more: set[int]) -> tuple[SlotCache, Tensor]:
        """A cache of the rows' prompts and the logits [B, V] behind them.

        `more` are the images (by identity) that have prompts left; `rows` all share a prefix with others, or none does.
        """
        cache = SlotCache(len(rows), self._decoder.device)
        if rows[0].shared:
            self._place_prefixes(cache, rows, more)
        logits = self._pass(
            cache, [row.ids[row.shared :] for row in rows], [row.shared for row in rows], [row.encoded for row in rows]
        )
        return cache, logits

    def _place_prefixes(self, cache: SlotCache, rows: Sequence[Row], more: set[int]) -> None:
        keys: list[Key] = [(id(row.prompt.image), tuple(row.ids[: row.shared])) for row in rows]
        by_length: dict[int, dict[Key, Row]] = defaultdict(dict)
        for key, row in zip(keys, rows, strict=True):
            if key not in self._held:
                by_length[row.shared][key] = row
        sources = {key: (held, 0) for key, held in self._held.items()}
        for new in by_length.values():
            prefixes = SlotCache(len(new), self._decoder.device)
            ids = [row.ids[: row.shared] for row in new.values()]
            self._pass(prefixes, ids, [0] * len(new), [row.encoded for row in new.values()])
            sources |= {key: (prefixes, number) for number, key in enumerate(new)}
        users: dict[SlotCache, list[tuple[int, int]]] = defaultdict(list)
        for number, key in enumerate(keys):
            source, line = sources[key]
            users[source].append((number, line))
        for source, pairs in users.items():
            cache.place([number for number, _ in pairs], source, [line for _, line in pairs])
        self._held = {key: self._alone(*sources[key]) for key in sources if key[0] in more}

    def _alone(self, source: SlotCache, line: int) -> SlotCache:
        if source.rows == 1:
            return source
        one = SlotCache(1, self._decoder.device)
        one.place([0], source, [line])
        return one

    def _pass(self, cache: SlotCache, ids: list[list[int]], begins: list[int], encoded: list[Encoded]) -> Tensor:
        """Ids [B][q] at positions from `begins`, with features in the place of the image tokens."""
        lengths = [len(row) for row in ids]
        longest, device = max(lengths), self._decoder.device
        padded = torch.zeros(len(ids), longest, dtype=torch.long)
        positions = torch.zeros(len(ids), longest, dtype=torch.long)
        for row, (numbers, begin) in enumerate(zip(ids, begins, strict=True)):
            padded[row, longest - len(numbers) :] = torch.tensor(numbers)
            positions[row, longest - len(numbers) :] = torch.arange(begin, begin + len(numbers))
        images = padded == self._image_token
        embeds = self._decoder.embed(padded.to(device))
        if images.any():
            having = images.any(1).tolist()
            features = torch.cat([one.features for one, has in zip(encoded, having, strict=True) if has])
            embeds[images.to(device)] = features.to(embeds.device, embeds.dtype)
        return self._decoder(cache, lengths, positions.to(device), inputs_embeds=embeds)
