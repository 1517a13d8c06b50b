"""Texts to token ids: a dialogue in the model's chat form, and labels that count the answers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from fedscale.errors import UserError

IGNORED = -100  # label of a position that has no loss
REMEMBERED = 2**15  # dialogues whose tokens are kept: those of a small pool, at most about 100 MB

Dialogue = tuple[tuple[str, str], ...]  # (question, answer), turn by turn


class ChatForm(Protocol):
    """Writes a question behind the turns before it, up to where its answer begins."""

    def __call__(self, question: str, *, history: Dialogue) -> str: ...


@dataclass(frozen=True)
class Tokens:
    """Right-padded ids and labels, int64 [B, T] each. Labels are the ids of the answers, and IGNORED elsewhere."""

    ids: Tensor
    labels: Tensor


class TextEncoder:
    """Encodes dialogues with a language model's tokenizer.

    `chat_form` writes them without the image's place: the visual tokens go in front of all text (METHOD.md, stage 1.2).
    """

    def __init__(self, tokenizer: Any, chat_form: ChatForm, max_tokens: int) -> None:
        self._tokenizer, self._chat_form, self._max = tokenizer, chat_form, max_tokens
        self._remembered = lru_cache(REMEMBERED)(self._encoded)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._openings: dict[str, tuple[str, int]] = {}  # the chat form of a first question, and its tokens

    def check(self, questions: Iterable[str]) -> None:
        """Raises UserError when a first question alone fills `max_tokens`: no answer would ever be learnt from."""
        for question in questions:
            length = self._opening(question)[1]
            if length >= self._max:
                raise UserError(
                    f"pretrain.max_text_tokens={self._max}: the question {question!r} takes {length} tokens, raise it"
                )

    def encode(self, dialogues: Sequence[Dialogue]) -> Tokens:
        """Questions, answers and end token of each dialogue; one that is too long loses its end, end token included."""
        ids, labels = zip(*map(self._remembered, dialogues), strict=True)
        longest = max(map(len, ids))
        return Tokens(
            torch.tensor([row + [self._pad] * (longest - len(row)) for row in ids]),
            torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels]),
        )

    def _encoded(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        spans = []
        for turn, (question, answer) in enumerate(dialogue):
            if turn == 0:
                prompt, start = self._opening(question)
            else:
                prompt = self._chat_form(question, history=dialogue[:turn])
                start = self._length(prompt)
            said = f"{prompt} {answer}"
            spans.append((start, self._length(said) if turn + 1 < len(dialogue) else None))
        whole = [*self._tokenizer(said)["input_ids"], self._tokenizer.eos_token_id][: self._max]
        labels = [IGNORED] * len(whole)
        for start, end in spans:  # tokenised together, as when the answer was generated: a prefix keeps its tokens
            labels[start:end] = whole[start:end]
        return whole, labels

    def _opening(self, question: str) -> tuple[str, int]:
        if question not in self._openings:
            prompt = self._chat_form(question, history=())
            self._openings[question] = prompt, self._length(prompt)
        return self._openings[question]

    def _length(self, text: str) -> int:
        return len(self._tokenizer(text)["input_ids"])
