"""A question in a multimodal model's chat form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def chat_text(processor: Any, question: str, with_image: bool = True, history: Sequence[tuple[str, str]] = ()) -> str:
    """The conversation up to where the next answer begins (LLaVA-1.5: `USER: … ASSISTANT:`).

    `history` is the (question, answer) turns before the question; the image is in the first of all questions. Raises
    what the processor's template raises for a conversation that it does not take.
    """
    turns: list[dict[str, Any]] = []
    for asked, answer in history:
        turns += [_turn("user", asked), _turn("assistant", answer)]
    turns.append(_turn("user", question))
    if with_image:
        turns[0]["content"].insert(0, {"type": "image"})
    return processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
