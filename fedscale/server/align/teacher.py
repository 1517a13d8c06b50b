"""The alignment's teacher: a frozen model's distribution q over the classes, as logits (METHOD.md, stage 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedscale.config.schema import Config
from fedscale.errors import UserError
from fedscale.server.align.draw import Teacher


def load_teacher(config: Config, class_names: Sequence[str], device: torch.device) -> Teacher:
    """The teacher that `align.teacher` names; where neither loss nor labels need one, one that says nothing.

    Raises UserError without its weights, or where its prompt has no `{}`.
    """
    if not config.align.taught:
        return lambda images: torch.empty(len(images), 0)
    return _clip(config, class_names, device) if config.align.teacher == "clip" else _mllm(config, class_names, device)


def _clip(config: Config, class_names: Sequence[str], device: torch.device) -> Teacher:
    """q = softmax(logit_scale · cosine(image, "a photo of a {class}."))."""
    prompt = config.teachers.clip.prompt
    if prompt.count("{}") != 1:
        raise UserError(f'teachers.clip.prompt={prompt}: expected one {{}} for the class, as in "a photo of a {{}}."')
    from fedscale.models.clip import load_clip

    clip = load_clip(config.teachers.clip, device)
    classes = clip.encode_classes(class_names, prompt)
    return lambda images: clip.class_logits(images, classes, config.align.logit_scale)


def _mllm(config: Config, class_names: Sequence[str], device: torch.device) -> Teacher:
    """q = the likelihood of each class name as the MLLM's answer to the question, normalised over the classes."""
    from fedscale.models.mllm import load_mllm

    mllm = load_mllm(config.teachers.mllm, device)
    question = config.teachers.mllm.question
    return lambda images: mllm.class_log_likelihoods(images, question, class_names).log_softmax(dim=1)
