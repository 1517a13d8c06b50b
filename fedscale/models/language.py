"""The language side of pretraining: a causal language model, its tokenizer, and questions in its chat form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedscale.config.schema import Config, LmConfig
from fedscale.errors import UserError
from fedscale.models.chat import chat_text, text_chat
from fedscale.models.hub import dtype_on, explained, local_folder, offline_where_unreachable, without_bars
from fedscale.models.mllm import load_mllm

KEY = "teachers.lm.model"
MARKER = "config.json"
TOLERANCE = 0.05  # of the largest logit: what rounding may make in half precision; looking ahead changes more


@dataclass(frozen=True)
class LanguageSide:
    """`model` takes `inputs_embeds` and gives `.logits`, in evaluation mode, its weights as loaded.

    `chat_form(question, history=turns)` writes a question behind the (question, answer) turns before it, up to where
    its answer begins.
    """

    model: Any
    tokenizer: Any
    chat_form: Callable[..., str]


def load_language_side(
    config: Config, device: torch.device | str = "cpu", held: torch.device | str | None = None
) -> LanguageSide:
    """The model that `teachers.lm` names, or the MLLM's own language model where it names none, for the device.

    `held`: where its weights wait, if not there. Raises UserError, with the remedies, when its weights can be had
    nowhere, and for one that pretraining cannot use.
    """
    if config.teachers.lm.model:
        return _load_lm(config.teachers.lm, torch.device(device), held)
    # Spread by `device_map` it would keep hooks that carry its inputs to where its weights no longer are.
    mllm = load_mllm(replace(config.teachers.mllm, device_map=None), device, held)
    model, tokenizer = mllm.language_model()
    # Of the MLLM, only its language model and what writes its prompts are kept.
    return LanguageSide(model, tokenizer, partial(chat_text, mllm.processor, with_image=False))


def _load_lm(config: LmConfig, device: torch.device, held: torch.device | str | None) -> LanguageSide:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = local_folder(config.model, MARKER, KEY)
    source = str(folder) if folder else config.model
    dtype = dtype_on(config.dtype, device)
    with explained(KEY, config.model), without_bars(), nullcontext() if folder else offline_where_unreachable():
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision)
        model = AutoModelForCausalLM.from_pretrained(source, revision=config.revision, dtype=dtype)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{KEY}={config.model}: its tokenizer has no end token, which ends every answer; name another")
    model = model.eval().to(held or device)
    _check_causal(model, config.model)
    chat_form = partial(text_chat, tokenizer)
    try:
        chat_form("What is it?", history=(("What is in the image?", "A star."),))
    except Exception as error:  # whatever a template raises
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{KEY}={config.model}: its chat template refuses a conversation ({reason})") from error
    return LanguageSide(model, tokenizer, chat_form)


@torch.no_grad()
def _check_causal(model: Any, name: str) -> None:
    """Raises UserError unless the model takes embeddings, and no token changes what is before it.

    AutoModelForCausalLM also loads encoders (BERT), which would read the answer that they are to predict.
    """
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)
    try:
        logits: Tensor = model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False).logits.float()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{KEY}={name}: takes no inputs_embeds ({reason}); name a decoder-only model") from error
    before = logits[:, :-1]
    if float((before[0] - before[1]).abs().max()) > TOLERANCE * float(before.abs().max()):
        raise UserError(f"{KEY}={name}: looks at the tokens that it is to predict; name a causal language model")
