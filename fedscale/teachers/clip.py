"""Trains a small CLIP from scratch: an open_clip model, saved in the layout that open_clip's `local-dir:` loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fedscale import files
from fedscale.data.augment import augment, normalise
from fedscale.progress import Reporter
from fedscale.rng import derive, numpy_generator, torch_generator
from fedscale.teachers.mimetic import mimetic_init
from fedscale.teachers.optimiser import Schedule, optimisers
from fedscale.teachers.words import word_tokenizer

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # of the CLIPs and LLaVAs trained here


@dataclass(frozen=True)
class ClipSize:
    """The sizes of both towers."""

    image_size: int = 32  # pixels
    patch_size: int = 8  # pixels
    width: int = 96
    layers: int = 5
    heads: int = 3
    embed_dim: int = 64
    text_width: int = 64
    text_layers: int = 2
    context_length: int = 24  # tokens


def clip_config(size: ClipSize, vocabulary: int) -> dict[str, Any]:
    """open_clip's own config file for a model of this size."""
    return {
        "model_cfg": {
            "embed_dim": size.embed_dim,
            "vision_cfg": {
                "image_size": size.image_size,
                "patch_size": size.patch_size,
                "width": size.width,
                "layers": size.layers,
                "head_width": size.width // size.heads,
            },
            "text_cfg": {
                "context_length": size.context_length,
                "vocab_size": vocabulary,
                "width": size.text_width,
                "heads": size.text_width // 32,
                "layers": size.text_layers,
                "hf_tokenizer_name": "local",  # open_clip reads the tokenizer from the folder itself
            },
        },
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def train_clip(
    images: Tensor,
    texts: Sequence[Sequence[str]],
    out: Path,
    size: ClipSize,
    schedule: Schedule,
    vocabulary: Sequence[str],
    reporter: Reporter,
    device: str = "cpu",
) -> None:
    """Train on uint8 images [N, H, W, 3] and their texts, `texts[k]` holding one kind of text for each image.

    Each step takes one kind, and images with equal texts are positives of each other (UniCL, arXiv 2204.03610), since
    captions repeat. `vocabulary` holds further texts whose words the tokenizer must know. Writes half-precision
    weights, config and tokenizer to `out`.
    """
    tokenizer = word_tokenizer([*(text for kind in texts for text in set(kind)), *vocabulary], lowercase=True, end=True)
    config = clip_config(size, len(tokenizer))
    torch.manual_seed(derive(schedule.seed, "clip", "init"))
    model = open_clip.CLIP(**config["model_cfg"]).to(device)
    mimetic_init(model.visual)
    model.logit_scale.data.fill_(math.log(10))
    uniques = [sorted(set(kind)) for kind in texts]
    numbers = [{text: number for number, text in enumerate(unique)} for unique in uniques]
    ids = [torch.tensor([number[text] for text in kind]) for kind, number in zip(texts, numbers, strict=True)]
    tokens = [_tokenise(tokenizer, unique, size.context_length) for unique in uniques]
    kinds = numpy_generator(schedule.seed, "clip", "kinds")
    draws = torch_generator(schedule.seed, "clip", "images")
    optimiser = optimisers(model, schedule)
    steps = schedule.steps(len(images))
    model.train()
    with reporter.task("training CLIP", steps, "steps") as task:
        for step, batch in enumerate(schedule.batches(len(images), draws)):
            kind = int(kinds.integers(len(texts)))
            unique, of_image = ids[kind][batch].unique(return_inverse=True)
            pixels = normalise(augment(images[batch], schedule.augment, draws).to(device), MEAN, STD)
            features = F.normalize(model.encode_image(pixels), dim=-1)
            embedded = F.normalize(model.encode_text(tokens[kind][unique].to(device)), dim=-1)
            loss = _loss(model.logit_scale.exp() * features @ embedded.T, of_image.to(device))
            optimiser.step(loss, step / steps)
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            task.advance(note=f"loss {loss.item():.3f}" if step % 20 == 0 else "")
    _save(model, config, tokenizer, out)


def _loss(logits: Tensor, of_image: Tensor) -> Tensor:
    """Image → text over the batch's unique texts, and text → image with all images of the text as positives."""
    positives = F.one_hot(of_image, logits.shape[1]).to(logits.dtype)
    to_images = -(positives / positives.sum(0) * logits.log_softmax(0)).sum(0).mean()
    return (F.cross_entropy(logits, of_image) + to_images) / 2


def _tokenise(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return encoded.input_ids


def _save(model: nn.Module, config: dict[str, Any], tokenizer: Any, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    weights = {name: value.half().contiguous() for name, value in model.cpu().state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors")
    files.write_json(out / "open_clip_config.json", config)
