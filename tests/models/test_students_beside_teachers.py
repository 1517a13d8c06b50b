"""A student of timm in the task of pretraining."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedscale.config.schema import ModelConfig, PretrainConfig
from fedscale.models import build_model
from fedscale.server.pretrain.task import Distillation, Whole
from fedscale.server.pretrain.text import Tokens


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_a_timm_student_learns_beside_the_teacher_in_front_of_a_language_model(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))
    student = build_model(ModelConfig(name), 3, 16)
    task = Distillation(student, language, 8, PretrainConfig(language_model="frozen", visual_tokens=2)).train()
    ids = torch.randint(0, 20, (2, 6))
    losses = task(torch.randn(2, 3, 16, 16), torch.randn(2, 8), Tokens(ids, ids), 0.5, Whole(2, 12))
    losses["loss"].backward()
    learnt = {name for name, p in student.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert learnt and not any(name.startswith("classifier") for name in learnt)
