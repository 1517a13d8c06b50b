"""Trains a small LLaVA from scratch on a CLIP's frozen vision tower, saved as transformers loads any other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from fedscale.data.augment import augment, normalise
from fedscale.models.hub import without_bars
from fedscale.progress import Reporter
from fedscale.rng import derive, numpy_generator, torch_generator
from fedscale.teachers.optimiser import Schedule, optimisers
from fedscale.teachers.words import IMAGE, word_tokenizer

IGNORED = -100  # label of a position that has no loss

# LLaVA-1.5's own (llava-hf/llava-1.5-7b-hf): "USER: <image>\nQUESTION ASSISTANT: ANSWER".
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class LlavaSize:
    """The language model's sizes; the vision tower has the CLIP's."""

    width: int = 96
    layers: int = 2
    heads: int = 3
    intermediate: int = 256


def train_llava(
    images: Tensor,
    texts: Mapping[str, Sequence[str]],
    questions: Mapping[str, Sequence[str]],
    clip: Path,
    out: Path,
    size: LlavaSize,
    schedule: Schedule,
    vocabulary: Sequence[str],
    reporter: Reporter,
    device: str = "cpu",
) -> None:
    """Train on uint8 images [N, H, W, 3], the answers `texts[kind]` (one an image) to any of `questions[kind]`.

    The vision tower is that of the open_clip folder `clip` and stays frozen; projector and language model are trained
    together on the next answer token. Each step takes one kind. Writes a half-precision model with its processor.
    """
    vision = vision_tower(clip).to(device)
    processor = _processor(vision.config, clip, _spoken(texts, questions, vocabulary))
    tokenizer = processor.tokenizer
    torch.manual_seed(derive(schedule.seed, "llava", "init"))
    model = LlavaForConditionalGeneration(_config(vision.config, tokenizer, size)).to(device)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.vision_tower.requires_grad_(False)
    kinds = list(texts)
    answers = {kind: _Answers(tokenizer, texts[kind]) for kind in kinds}
    prompts = {kind: [_prompt_ids(processor, question) for question in questions[kind]] for kind in kinds}
    optimiser = optimisers(model, schedule)
    draws, choices = torch_generator(schedule.seed, "llava", "images"), numpy_generator(schedule.seed, "llava", "kinds")
    steps = schedule.steps(len(images))
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    model.train()
    with reporter.task("training LLaVA", steps, "steps") as task:
        for step, batch in enumerate(schedule.batches(len(images), draws)):
            kind = kinds[int(choices.integers(len(kinds)))]
            prompt = prompts[kind][int(choices.integers(len(prompts[kind])))].to(device)
            pixels = normalise(augment(images[batch], schedule.augment, draws).to(device), tuple(mean), tuple(std))
            with torch.no_grad():
                features = vision(pixels, output_hidden_states=True).hidden_states[-1]
            loss = _loss(model, features, prompt, answers[kind].of(batch).to(device))
            optimiser.step(loss, step / steps)
            task.advance(note=f"loss {loss.item():.3f}" if step % 20 == 0 else "")
    with without_bars():
        model.cpu().half().save_pretrained(out)
    processor.save_pretrained(out)


def vision_tower(clip: Path) -> CLIPVisionModel:
    """The visual tower of an open_clip folder as transformers' CLIPVisionModel: the same numbers to rounding."""
    source = open_clip.create_model(f"local-dir:{clip}", require_pretrained=True).visual
    sizes = json.loads((clip / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]["vision_cfg"]
    config = CLIPVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=4 * sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["width"] // sizes["head_width"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    tower = CLIPVisionModel(config)
    ours = {
        "embeddings.class_embedding": source.class_embedding,
        "embeddings.patch_embedding.weight": source.conv1.weight,
        "embeddings.position_embedding.weight": source.positional_embedding,
        **_norm("pre_layrnorm", source.ln_pre),
        **_norm("post_layernorm", source.ln_post),
    }
    for number, block in enumerate(source.transformer.resblocks):
        name = f"encoder.layers.{number}"
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        for part, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
            ours |= {f"{name}.self_attn.{part}.weight": weight, f"{name}.self_attn.{part}.bias": bias}
        ours |= {
            **_norm(f"{name}.self_attn.out_proj", block.attn.out_proj),
            **_norm(f"{name}.layer_norm1", block.ln_1),
            **_norm(f"{name}.layer_norm2", block.ln_2),
            **_norm(f"{name}.mlp.fc1", block.mlp.c_fc),
            **_norm(f"{name}.mlp.fc2", block.mlp.c_proj),
        }
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in tower.state_dict()) else ""
    tower.load_state_dict({prefix + key: value.detach() for key, value in ours.items()}, strict=True)
    return tower.eval().requires_grad_(False)


def _norm(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}  # type: ignore[dict-item]


def _config(vision: CLIPVisionConfig, tokenizer: Any, size: LlavaSize) -> LlavaConfig:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **ids,
    )
    # The last layer with its class token: what CLIP's loss has trained. LLaVA-1.5 takes the last but one without it.
    return LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=_image_tokens(vision),
        tie_word_embeddings=False,
        **ids,
    )


def _image_tokens(vision: CLIPVisionConfig) -> int:
    return (vision.image_size // vision.patch_size) ** 2 + 1


def _processor(vision: CLIPVisionConfig, clip: Path, texts: set[str]) -> LlavaProcessor:
    settings = json.loads((clip / "open_clip_config.json").read_text(encoding="utf-8"))["preprocess_cfg"]
    side = vision.image_size
    images = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=settings["mean"],
        image_std=settings["std"],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=word_tokenizer(texts),
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def _spoken(
    texts: Mapping[str, Sequence[str]], questions: Mapping[str, Sequence[str]], vocabulary: Sequence[str]
) -> set[str]:
    """All that is ever read or said, in chat form with and without an image."""
    asked = {question for several in questions.values() for question in several}
    said = {f" {text}" for several in texts.values() for text in set(several)}
    chats = {f"USER: {lead}{question} ASSISTANT:" for question in asked for lead in (f"{IMAGE}\n", "")}
    return {*chats, *said, *(f" {text}" for text in vocabulary)}


def _prompt_ids(processor: LlavaProcessor, question: str) -> Tensor:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    return torch.tensor(processor.tokenizer(text)["input_ids"])


class _Answers:
    """The token ids of each image's answer and the end token, right-padded with IGNORED."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        unique = sorted(set(texts))
        rows = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in unique]
        ended = [torch.tensor([*row, tokenizer.eos_token_id]) for row in rows]
        self._ids = nn.utils.rnn.pad_sequence(ended, batch_first=True, padding_value=IGNORED)
        numbers = {text: number for number, text in enumerate(unique)}
        self._of_image = torch.tensor([numbers[text] for text in texts])

    def of(self, batch: Tensor) -> Tensor:
        """[B, T], cut to the longest answer of the batch."""
        rows = self._ids[self._of_image[batch]]
        return rows[:, : int((rows != IGNORED).sum(1).max())]


def _loss(model: LlavaForConditionalGeneration, features: Tensor, prompt: Tensor, answers: Tensor) -> Tensor:
    """Mean next-token loss over the answers' tokens [B, T], the features in the place of the prompt's `<image>`."""
    inner, batch = model.model, len(features)
    embed = inner.get_input_embeddings()
    place = int((prompt == model.config.image_token_id).nonzero()[0])
    before, after = (embed(part).expand(batch, -1, -1) for part in (prompt[:place], prompt[place + 1 :]))
    spoken = embed(answers[:, :-1].clamp(min=0))
    whole = torch.cat([before, inner.multi_modal_projector(features), after, spoken], dim=1)
    hidden = inner.language_model(inputs_embeds=whole, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -answers.shape[1] :])  # the position before a token predicts it
    return F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED)
