"""Which models the decode loop is right for: by what their config says, and by a probe of what they compute."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from fedscale.models.cache_word import cache_word
from fedscale.models.generation.prefill import Decoder, Prefill
from fedscale.models.generation.prompts import REFUSALS, Row, refusal
from fedscale.models.generation.slots import SlotCache

ARGUMENTS = ("inputs_embeds", "attention_mask", "position_ids", "logits_to_keep")
NEUTRAL: dict[str, tuple[Any, ...]] = {  # of a generation config, where anything else changes a greedy answer
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "guidance_scale": (None, 1.0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "watermarking_config": (None,),
    "stop_strings": (None,),
    "cache_implementation": (None, "dynamic"),
}
# The difference of logits, relative to their spread, that rounding explains; wrong positions or masks give 0.1 to 1.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


def against(model: Any) -> str | None:
    """Why the loop cannot be right for the model by its config, or none."""
    text = model.config.get_text_config()
    arguments = inspect.signature(model.forward).parameters
    missing = [name for name in (*ARGUMENTS, cache_word(model)) if name not in arguments]
    inner = getattr(model, "model", model)
    rope = getattr(text, "rope_parameters", None) or {}
    changed = [name for name, fine in NEUTRAL.items() if getattr(model.generation_config, name, None) not in fine]
    if model.config.is_encoder_decoder:
        return "it is an encoder with a decoder"
    if getattr(model.config, "image_token_id", None) is None or not hasattr(model, "get_image_features"):
        return "it has no image token or no get_image_features"
    if missing:
        return f"its forward takes no {', '.join(missing)}"
    if "token_type_ids" in arguments or "mm_token_type_ids" in arguments:
        return "its attention or positions depend on token types"
    if hasattr(inner, "get_rope_index") or "mrope_section" in rope:
        return "its positions have several axes (M-RoPE)"
    if text._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {text._attn_implementation}, which takes no mask with holes"
    kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    if kinds != {DynamicLayer.__name__}:
        return f"its cache is not of full attention alone ({', '.join(sorted(kinds))})"
    if changed:
        return f"its generation config sets {', '.join(changed)}"
    return None


def probe(model: Any, inputs: Any, decoder: Decoder, image_token: int, row: Row) -> str | None:
    """Why the loop is not right for the model by what it computes, or none.

    One prompt goes through all that the loop does (a shared prefix, a hole, a place in another cache, a decode step),
    and its last logits must be those that the model itself gives for `inputs`, which the processor made of it.
    """
    if inputs["input_ids"][0].tolist() != row.ids:
        return "its processor does not make of a prompt what its tokenizer and an image's tokens make"
    if len(row.ids) < row.shared + 2:
        return "its prompts end with the image"
    expected = model(**inputs.to(decoder.device, dtype=model.dtype)).logits[0, -1].float()
    try:
        found = _looped(decoder, image_token, row)
    except REFUSALS as error:
        return f"the loop fails on it ({refusal(error).error})"
    off = ((found - expected).norm(dim=1).max() / (expected - expected.mean()).norm()).item()
    limit = ROUNDING.get(model.dtype, 0.0)
    return None if off <= limit else f"the loop's logits are off by {off:.2g} of their spread, not below {limit:g}"


def _looped(decoder: Decoder, image_token: int, row: Row) -> Tensor:
    """The logits [2, V] behind the prompt: of it whole, and of it cut by one token that a decode step then adds."""
    cut = Row(row.index, row.prompt, row.ids[:-1], row.shared, row.encoded)
    group, logits = Prefill(decoder, image_token)([row, cut], set())
    cache = SlotCache(3, decoder.device)
    cache.place([0, 2], group, [0, 1])
    last = torch.full((3, 1), row.ids[-1], dtype=torch.long, device=decoder.device)
    stepped = decoder(cache, [1, 1, 1], torch.full_like(last, len(cut.ids)), input_ids=last)
    return torch.stack([logits[0], stepped[2]])
