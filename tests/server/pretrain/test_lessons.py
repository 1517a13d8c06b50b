"""What a lesson holds before its module is prepared."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedscale.config import overlaid
from fedscale.config.schema import Config
from fedscale.distributed.mesh import Mesh
from fedscale.models import initial_model
from fedscale.models.language import load_language_side
from fedscale.server.pretrain import lessons


@pytest.mark.parametrize(("fsdp2", "place"), [("true", "cpu"), ("false", "meta")])
def test_under_fsdp2_the_language_model_waits_in_host_memory_for_it_need_not_fit_a_device(monkeypatch, fsdp2, place):
    asked = []

    def recorded(config: Config, device: torch.device, held: Any = None) -> Any:
        asked.append((device.type, torch.device(held or device).type))
        return load_language_side(config)

    monkeypatch.setattr(lessons, "load_language_side", recorded)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", fsdp2)
    teachers = {"mllm": {"model": "teachers/shapes/llava"}}
    config = overlaid(Config(), {"teachers": teachers, "pretrain": {"teacher": "stored", "language_model": "frozen"}})
    pairs = SimpleNamespace(embed_dim=lambda: 8)
    lessons.lesson_of(config, initial_model(config, 3), pairs, Mesh(device=torch.device("meta")))  # for a GPU
    assert asked == [("meta", place)]
