"""How good a teacher is: the share of images whose class it names, through the code that every run loads it with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedscale.config.schema import ClipConfig, MllmConfig
from fedscale.models.clip import load_clip
from fedscale.models.mllm import load_mllm

BATCH = 250  # images


def clip_accuracy(folder: Path, images: Tensor, labels: Tensor, class_names: Sequence[str], prompt: str) -> float:
    """Zero-shot accuracy on uint8 images [N, H, W, 3], in percent."""
    clip = load_clip(ClipConfig(model=str(folder.resolve()), pretrained=None))
    classes = clip.encode_classes(class_names, prompt)
    predicted = torch.cat([clip.class_logits(part, classes).argmax(1) for part in images.split(BATCH)])
    return 100 * (predicted == labels).float().mean().item()


def llava_accuracy(
    folder: Path,
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    questions: Mapping[str, str],
    max_new_tokens: int = 40,
) -> dict[str, float]:
    """Share of greedy answers that end by themselves and name the true class and no other, in percent, by question."""
    mllm = load_mllm(MllmConfig(model=str(folder.resolve())))
    named = {}
    for kind, question in questions.items():
        answers = [
            answer
            for part in images.split(BATCH)
            for answer in mllm.generate(part, [question] * len(part), max_new_tokens=max_new_tokens)
        ]
        right = [
            answer.finish == "stop" and classes_in(answer.text, class_names) == [class_names[label]]
            for answer, label in zip(answers, labels.tolist(), strict=True)
        ]
        named[kind] = 100 * sum(right) / len(right)
    return named


def classes_in(text: str, class_names: Sequence[str]) -> list[str]:
    """The class names that a text says, as whole words, in class order."""
    return [name for name in class_names if re.search(rf"\b{re.escape(name.replace('_', ' '))}\b", text.lower())]
