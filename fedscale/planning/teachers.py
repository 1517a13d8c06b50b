"""The teachers' shapes, without their weights: a published architecture's, a local folder's, or a cached config's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from fedscale.config.schema import Config
from fedscale.errors import UserError
from fedscale.planning.shapes import Decoder, Passes, decoder_of, passes_of

# The published configs of hub models, as differences from transformers' defaults, which are LLaVA-1.5-7B's (vision
# tower CLIP-ViT-L/14-336, Llama of 32 layers): Liu et al., arXiv 2310.03744, and the models' config.json on the hub.
LLAVA = {
    "llava-hf/llava-1.5-7b-hf": {"vocab_size": 32064},
    "llava-hf/llava-1.5-13b-hf": {
        "vocab_size": 32064,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}


@dataclass(frozen=True)
class Clip:
    """The frozen CLIP: one image and one text through it."""

    parameters: int
    width: int  # of its embeddings
    image: Passes
    text: Passes


@dataclass(frozen=True)
class MllmShape:
    """The multimodal LLM: one image through tower and projector, its tokens, and the language model behind."""

    parameters: int
    image: Passes
    image_tokens: int
    language: Decoder


def clip_of(config: Config) -> Clip:
    """The CLIP of the config. Raises UserError where its shape is not to be had without a network."""
    return _clip(config.teachers.clip.model)


@cache
def _clip(name: str) -> Clip:
    import open_clip
    import torch
    from torch import nn

    from fedscale.models.clip import KEY, MARKER, quiet
    from fedscale.models.hub import local_folder

    folder = None if ":" in name else local_folder(name, MARKER, KEY)
    with quiet(), torch.device("meta"):
        if folder:
            described = json.loads((folder / MARKER).read_text(encoding="utf-8"))["model_cfg"]
            described.pop("custom_text", None)
            model: Any = open_clip.CLIP(**described)
        elif name in open_clip.list_models():
            model = open_clip.create_model(name, pretrained=None, load_weights=False, device="meta")
        else:
            raise UserError(
                f"{KEY}={name}: its shape is not known here; plan with a name of open_clip's, e.g. {KEY}=ViT-B-32"
            )
    size = model.visual.image_size
    shape = (3, size, size) if isinstance(size, int) else (3, *size)

    class Texts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = model

        def forward(self, images: Any) -> Any:
            tokens = torch.zeros(len(images), model.context_length, dtype=torch.long, device="meta")
            return self.clip.encode_text(tokens)

    parameters = sum(p.numel() for p in model.parameters())
    seen, read = passes_of(model.visual, shape, False), passes_of(Texts(), (1,), False)
    return Clip(parameters, int(model.visual.output_dim), seen, read)


def mllm_of(config: Config) -> MllmShape:
    """The MLLM of the config. Raises UserError where its shape is not to be had without a network."""
    return _mllm(config.teachers.mllm.model)


@cache
def _mllm(name: str) -> MllmShape:
    import torch
    from transformers import AutoModelForImageTextToText

    described = _mllm_config(name)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(described, attn_implementation="eager")
    vision, text = described.vision_config, described.get_text_config()
    tower = passes_of(_tower(model), (3, vision.image_size, vision.image_size), False)
    tokens = (vision.image_size // vision.patch_size) ** 2
    language = _language(model, text)
    return MllmShape(sum(p.numel() for p in model.parameters()), tower, tokens, language)


def language_of(config: Config) -> Decoder:
    """The language model of pretraining. Raises UserError where its shape is not to be had without a network."""
    if not config.teachers.lm.model:
        return mllm_of(config).language
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    described = _read("teachers.lm.model", config.teachers.lm.model, AutoConfig)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described)
    return decoder_of(model, described.get_text_config())


def _mllm_config(name: str) -> Any:
    from transformers import AutoConfig, LlavaConfig

    from fedscale.models.mllm import KEY

    return (
        LlavaConfig(text_config={"model_type": "llama", **LLAVA[name]})
        if name in LLAVA
        else _read(KEY, name, AutoConfig)
    )


def _read(key: str, name: str, kind: Any) -> Any:
    """A config of a local folder, or of the hub's cache; nothing is downloaded."""
    from fedscale.models.hub import local_folder

    folder = local_folder(name, "config.json", key)
    try:
        return kind.from_pretrained(str(folder or name), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}={name}: its config is not on this machine; `fedscale fetch CONFIG` stages it, or plan with one of "
            f"{', '.join(LLAVA)}"
        ) from error


def _tower(model: Any) -> Any:
    from torch import nn

    inner = model.model

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.projector = inner.vision_tower, inner.multi_modal_projector

        def forward(self, images: Any) -> Any:
            return self.projector(self.tower(images).last_hidden_state)

    return Tower()


def _language(model: Any, text: Any) -> Decoder:
    """The language model with its head, beside which the tower's layers do not count."""
    from torch import nn

    both = nn.ModuleList([model.model.language_model, model.lm_head])
    return decoder_of(both, text)


def words_of(texts: Any) -> float:
    """Tokens of a question in words: 1.3 a word, and 8 of the chat form [D: English in LLaMA's vocabulary]."""
    held = list(texts)
    return 8 + 1.3 * sum(len(text.split()) for text in held) / max(1, len(held))
