"""What is asked and what comes back, and a prompt as the token ids that the model's processor would make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Finish = Literal["stop", "length", "error"]


class Unsupported(Exception):
    """This model or processor does not work as the decode loop takes for granted; the message says in what."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt in the model's chat form about one image, uint8 [H, W, 3]; one image's prompts hold the same tensor."""

    image: Tensor
    text: str
    max_new_tokens: int
    temperature: float = 0.0  # 0 = greedy; else drawn from the whole distribution, no top-k or top-p
    seed: int = 0  # of what is drawn at a temperature above 0


@dataclass(frozen=True)
class Generated:
    """One answer: its text, how it ended, and its tokens (the end token counted). `error` says why there is no text."""

    text: str
    finish: Finish
    tokens: int
    error: str = ""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image for the language model: features [T, D], and the token ids that stand for it in a prompt."""

    features: Tensor
    block: tuple[int, ...]


@dataclass(eq=False)
class Row:
    """A prompt under way: its ids, of which `shared` leading ones are the image's other prompts' as well."""

    index: int  # in the call
    prompt: Prompt
    ids: list[int]
    shared: int
    encoded: Encoded
    answer: list[int] = field(default_factory=list)
    slot: int = -1


class Tokens:
    """The tokenizer's side of a model: prompts to ids, and ids to answers."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.image: int = getattr(model.config, "image_token_id", -1)  # without one, `support` rules the loop out
        ends = model.generation_config.eos_token_id
        self.ends = frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])

    @property
    def image_text(self) -> str:
        """What stands for an image in a prompt's text."""
        return self.tokenizer.convert_ids_to_tokens(self.image)

    def block(self, expanded: list[int]) -> tuple[int, ...]:
        """The ids that an image becomes, from what the processor made of `image_text` alone. Raises Unsupported."""
        plain = self.tokenizer(self.image_text)["input_ids"]
        if plain.count(self.image) != 1:
            raise Unsupported(f"its tokenizer has no single token for {self.image_text!r}")
        before = plain.index(self.image)
        behind = len(plain) - before - 1
        block = tuple(expanded[before : len(expanded) - behind])
        special = {self.image, *self.tokenizer.all_special_ids}  # text could grow together with what is beside it
        if not block or not {block[0], block[-1]} <= special:
            raise Unsupported("its processor puts text around an image")
        return block

    def expanded(self, ids: list[int], encoded: Encoded) -> tuple[list[int], int]:
        """The ids with the image's block in place, and the number of them up to its end.

        Raises ValueError unless the prompt names exactly one image.
        """
        if (count := ids.count(self.image)) != 1:
            raise ValueError(f"the prompt holds {count} image tokens ({self.image_text}), expected 1")
        place = ids.index(self.image)
        return [*ids[:place], *encoded.block, *ids[place + 1 :]], place + len(encoded.block)

    def generated(self, ids: Sequence[int]) -> Generated:
        """The answer of the ids up to its first end token, or cut."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        kept = ids if end is None else ids[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Generated(text, "length" if end is None else "stop", len(kept) + (end is not None))


def refusal(error: Exception) -> Generated:
    """The answer to a prompt that the processor refuses. Raises the error again where it is not the prompt's fault."""
    memory = "DefaultCPUAllocator" in str(error)  # a plain RuntimeError on the CPU
    if memory or isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
        raise error
    line = " ".join(str(error).split())[:200]
    return Generated("", "error", 0, f"{type(error).__name__}: {line}")


REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)  # what processors raise for bad input
