"""The alignment's teachers ask the frozen models what METHOD.md says, and give logits."""

import dataclasses
from typing import Any

import pytest
import torch

from fedscale.config.schema import AlignConfig, ClipConfig, Config, MllmConfig, TeachersConfig
from fedscale.errors import UserError
from fedscale.models import clip as clips
from fedscale.models import mllm as mllms
from fedscale.server.align.teacher import load_teacher

NAMES = ("arrow", "dark_blue")
IMAGES = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)


class FakeClip:
    def encode_classes(self, class_names: Any, prompt: str) -> torch.Tensor:
        self.asked = [prompt.replace("{}", name) for name in class_names]
        return torch.tensor([[1.0, 0.0], [0.6, 0.8]])

    def class_logits(self, images: torch.Tensor, classes: torch.Tensor, logit_scale: float) -> torch.Tensor:
        return logit_scale * torch.tensor([[1.0, 0.0]]).expand(len(images), 2) @ classes.T


class FakeMllm:
    def class_log_likelihoods(self, images: torch.Tensor, question: str, class_names: Any) -> torch.Tensor:
        self.asked = (question, tuple(class_names))
        return torch.tensor([[-3.0, -5.0]]).expand(len(images), 2)


def _config(**align: Any) -> Config:
    teachers = TeachersConfig(ClipConfig("c", prompt="a drawing of a {}."), MllmConfig("m", question="What is it?"))
    return Config(align=AlignConfig(**align), teachers=teachers)


def test_clip_is_asked_the_prompt_of_each_class_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeClip()
    monkeypatch.setattr(clips, "load_clip", lambda config, device: fake)
    teacher = load_teacher(_config(teacher="clip", logit_scale=50.0), NAMES, torch.device("cpu"))
    assert fake.asked == ["a drawing of a arrow.", "a drawing of a dark_blue."]
    torch.testing.assert_close(teacher(IMAGES), torch.tensor([[50.0, 30.0]]).expand(3, 2))


def test_the_mllms_likelihoods_are_normalised_over_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMllm()
    monkeypatch.setattr(mllms, "load_mllm", lambda config, device: fake)
    scores = load_teacher(_config(teacher="mllm"), NAMES, torch.device("cpu"))(IMAGES)
    assert fake.asked == ("What is it?", NAMES)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))
    torch.testing.assert_close(scores[:, 0] - scores[:, 1], torch.full((3,), 2.0))


def test_a_prompt_without_a_place_for_the_class_is_refused() -> None:
    config = _config()
    clip = dataclasses.replace(config.teachers.clip, prompt="a photo")
    config = dataclasses.replace(config, teachers=dataclasses.replace(config.teachers, clip=clip))
    with pytest.raises(UserError, match=r"teachers.clip.prompt=a photo: expected one \{\} for the class"):
        load_teacher(config, NAMES, torch.device("cpu"))
