"""A question in a model's chat form: a multimodal model's, or a language model's."""

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


def text_chat(tokenizer: Any, question: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """The same for a language model alone: in its tokenizer's template, else as `USER: … ASSISTANT:`.

    A start token that the template writes is left out where the tokenizer puts it in front by itself.
    """
    if not tokenizer.chat_template:
        said = "".join(f"USER: {asked} ASSISTANT: {answer} " for asked, answer in history)
        return f"{said}USER: {question} ASSISTANT:"
    turns: list[dict[str, str]] = []
    for asked, answer in history:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": question})
    text: str = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    start = tokenizer.bos_token
    return text.removeprefix(start) if start and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else text


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
