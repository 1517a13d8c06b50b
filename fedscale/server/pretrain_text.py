"""Texts to token ids: the prompt of a kind, its answer, and labels that count the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedscale.errors import UserError

IGNORED = -100  # label of a position that has no loss


@dataclass(frozen=True)
class Tokens:
    """Right-padded ids and labels, int64 [B, T] each. Labels are the ids of the answer, and IGNORED elsewhere."""

    ids: Tensor
    labels: Tensor


class TextEncoder:
    """Encodes (kind, answer) pairs with a language model's tokenizer.

    `prompts` by kind are in the model's chat form, without the image's place: the visual tokens go in front of all text
    (METHOD.md, stage 1.2). Raises UserError when a prompt alone is longer than `max_tokens`.
    """

    def __init__(self, tokenizer: Any, prompts: dict[str, str], max_tokens: int) -> None:
        self._tokenizer, self._max = tokenizer, max_tokens
        self._prompts = prompts
        self._lengths = {kind: len(tokenizer(prompt)["input_ids"]) for kind, prompt in prompts.items()}
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        for kind, length in self._lengths.items():
            if length >= max_tokens:
                raise UserError(
                    f"pretrain.max_text_tokens={max_tokens}: the prompt of {kind} takes {length} tokens, raise it"
                )

    def encode(self, kinds: Sequence[str], answers: Sequence[str]) -> Tokens:
        """Prompt, answer and end token of each pair; an answer that is too long loses its end, end token included."""
        ids, labels = [], []
        spoken = [f"{self._prompts[kind]} {answer}" for kind, answer in zip(kinds, answers, strict=True)]
        for kind, whole in zip(kinds, self._tokenizer(spoken)["input_ids"], strict=True):
            whole = [*whole, self._tokenizer.eos_token_id][: self._max]
            ids.append(whole)
            labels.append([IGNORED] * self._lengths[kind] + whole[self._lengths[kind] :])
        longest = max(map(len, ids))
        ids = [row + [self._pad] * (longest - len(row)) for row in ids]
        labels = [row + [IGNORED] * (longest - len(row)) for row in labels]
        return Tokens(torch.tensor(ids), torch.tensor(labels))
