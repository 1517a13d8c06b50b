"""What transformers calls the keys and values of what a model has read: a word that differs between its versions."""

from __future__ import annotations

import inspect
from typing import Any


def cache_word(model: Any) -> str:
    """The argument of the model's forward, and the field of its output: `past_key_values`, from 5.24 on `cache`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
