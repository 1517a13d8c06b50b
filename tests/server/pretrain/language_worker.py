"""Steps of distillation in front of a language model that is loaded in bf16, as on a GPU, under a launch's strategy.

What `test_language_ranks.py` starts as 2 ranks; each takes its part of the same images. Rank 0 writes the losses, and
whether its own ones and its gradients hold more than bf16 can.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from fedscale.config.schema import LoraConfig, ModelConfig, PretrainConfig
from fedscale.distributed.mesh import open_mesh
from fedscale.distributed.strategy import read_launch_file
from fedscale.distributed.training import Training
from fedscale.models import build_model
from fedscale.server.pretrain.task import Distillation, Whole
from fedscale.server.pretrain.text import Tokens

IMAGES, TEXT, STEPS = 4, 6, 3
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def main() -> None:
    out, how, precision, launch = sys.argv[1:]
    torch.set_num_threads(1)
    if launch:
        read_launch_file(launch)
    config = PretrainConfig(
        visual_tokens=2, language_model=how, lora=LoraConfig(rank=2), mixed_precision=precision, contrastive_weight=0.1
    )
    with open_mesh(torch.device("cpu"), 1, 60, print, "test") as mesh:
        torch.manual_seed(1)
        language = LlamaForCausalLM(LlamaConfig(vocab_size=30, max_position_embeddings=64, **SIZES))
        task = Distillation(build_model(ModelConfig(width=4, norm="group"), 5), language.bfloat16().eval(), 6, config)
        trained = [p for p in task.parameters() if p.requires_grad]
        training = Training(mesh, task, torch.optim.AdamW(trained, lr=1e-3), precision, micro_batch=2, max_norm=1.0)
        training.module.train()
        losses, fine = [], {"loss": False, "gradient": False}
        for step in range(STEPS):
            draws = torch.Generator().manual_seed(step)
            images, seen = torch.randn(IMAGES, 3, 8, 8, generator=draws), torch.randn(IMAGES, 6, generator=draws)
            ids = torch.randint(0, 30, (IMAGES, TEXT), generator=draws)
            own, seen = slice(mesh.rank, None, mesh.world), F.normalize(seen, dim=-1)
            batch = images[own], seen[own], Tokens(ids[own], ids[own]), 0.5, Whole(IMAGES, IMAGES * TEXT), seen[own]
            loss = training.module(*batch)["loss"]
            training.backward(loss)
            gradients = [p.grad for p in task.parameters() if p.grad is not None]
            fine["loss"] |= finer_than_bf16(loss.detach())
            fine["gradient"] |= any(finer_than_bf16(getattr(g, "to_local", lambda g=g: g)()) for g in gradients)
            losses.append(float(mesh.sum_over_clients(loss.detach().double().view(1))))
            training.step(1e-3)
        if mesh.is_main:
            Path(out).write_text(json.dumps({"losses": losses, "fine": fine}))


def finer_than_bf16(tensor: torch.Tensor) -> bool:
    return bool((tensor.bfloat16().double() != tensor.double()).any())


if __name__ == "__main__":
    main()
