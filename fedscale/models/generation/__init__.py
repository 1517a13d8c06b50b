"""Answers of a multimodal LLM, many at once: a decode loop whose slots are refilled (`loop`).

`support` says which models that is right for; the others go through `model.generate` (`plain`). Needs transformers.
"""

from fedscale.models.generation.generator import Generator
from fedscale.models.generation.prompts import Generated, Prompt

__all__ = ["Generated", "Generator", "Prompt"]
