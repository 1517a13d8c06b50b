"""Pretraining at scale on one GPU: `python bench/pretrain_gpu.py`, or `--tiny` to try the script on a CPU.

A ResNet-50 student, a ViT-B/32 teacher and a language model of about a billion parameters with LoRA, all of random
weights, in bf16, on synthetic images and texts. Rows: the live teacher, stored embeddings, and the share of time that
the same loop without any data on the way takes; each also under FSDP2 and ZeRO-3 (a process each, since a process group
is made once). MFU counts 6 FLOPs a trained and 4 a frozen parameter and token of the language model, and three forward
passes of the student; `--peak` is the device's bf16 TFLOP/s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from fedscale.config.schema import LoraConfig, ModelConfig, PretrainConfig
from fedscale.data.augment import augment, normalise
from fedscale.distributed.mesh import Mesh
from fedscale.distributed.strategy import read_launch_file
from fedscale.distributed.training import Training
from fedscale.models import build_model
from fedscale.models.clip import ClipTeacher
from fedscale.server.pretrain.task import Distillation, Whole
from fedscale.server.pretrain.text import Tokens

BILLION = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
TINY = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
STRATEGIES = {
    "single": "",
    "fsdp2": "launch/accelerate/fsdp2.yaml",
    "zero3": "launch/deepspeed/zero3.json",
}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RESNET50_FLOPS = 4.1e9  # a forward pass at 224 pixels, multiplications and additions apart


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tiny", action="store_true")
    asked.add_argument("--batch", type=int, default=64)
    asked.add_argument("--tokens", type=int, default=128)
    asked.add_argument("--steps", type=int, default=20)
    asked.add_argument("--peak", type=float, default=989.0, help="bf16 TFLOP/s of the device (H100, H200: 989)")
    asked.add_argument("--strategy", choices=STRATEGIES, help="this one alone, in this process")
    words = asked.parse_args()
    if words.strategy:
        print(json.dumps(measured(words)))
        return
    strategies = ["single"] if words.tiny else list(STRATEGIES)
    for strategy in strategies:
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
        if strategy != "single":
            environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        command = [sys.executable, __file__, *sys.argv[1:], "--strategy", strategy]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip().splitlines()[-1] if not done.returncode else f"{strategy}: exit {done.returncode}")


def measured(words: argparse.Namespace) -> dict[str, Any]:
    """Images a second live, stored and of the loop alone, MFU and peak memory under one strategy."""
    device = torch.device("cpu" if words.tiny else "cuda")
    if words.tiny:
        words.batch, words.tokens, words.steps = 4, 16, 3
    if STRATEGIES[words.strategy]:
        read_launch_file(STRATEGIES[words.strategy])
    side = 64 if words.tiny else 224
    teacher, task = _teacher(device, words.tiny), _task(words.tiny)
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    training = Training(Mesh(device=device), task.to(device), optimizer, "bf16", words.batch, max_norm=1.0)
    training.module.train()
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (words.batch, side, side, 3), dtype=torch.uint8, generator=draws)
    ids = torch.randint(2, TINY["vocab_size"], (words.batch, words.tokens), generator=draws)
    tokens = Tokens(ids.to(device), ids.to(device))
    seen = teacher.encode_images(images).clone()

    def step(live: bool, data: bool) -> None:
        own = images.to(device) if data else on_device
        shown = normalise(augment(own, "crop_flip", draws), MEAN, STD) if data else ready
        features = teacher.encode_images(own).clone() if live else seen
        losses = training.module(shown, features, tokens, 0.5, Whole(words.batch, ids.numel()), None)
        training.backward(losses["loss"])
        training.step(1e-4)

    on_device = images.to(device)
    ready: Tensor = normalise(on_device, MEAN, STD)
    rates = {
        "live": _rate(lambda: step(True, True), words, device),
        "stored": _rate(lambda: step(False, True), words, device),
        "loop_alone": _rate(lambda: step(False, False), words, device),
    }
    language = sum(p.numel() for p in task.language_model.parameters())
    flops = words.batch * (4 * language * (words.tokens + 4) + 3 * RESNET50_FLOPS)
    return {
        "strategy": training.strategy,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "images_per_second": rates,
        "share_of_synthetic": {name: rates[name] / rates["loop_alone"] for name in ("live", "stored")},
        "mfu": None if words.tiny else flops * rates["stored"] / words.batch / (words.peak * 1e12),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "language_model_parameters": language,
    }


def _teacher(device: torch.device, tiny: bool) -> ClipTeacher:
    import open_clip

    name = "RN50" if tiny else "ViT-B-32"
    model = open_clip.create_model(name, pretrained=None, precision="fp32" if tiny else "bf16")
    return ClipTeacher(model, open_clip.get_tokenizer(name), device)


def _task(tiny: bool) -> Distillation:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = TINY if tiny else BILLION
    language_model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.float32 if tiny else torch.bfloat16)
    config = PretrainConfig(language_model="lora", lora=LoraConfig(rank=8), mixed_precision="bf16")
    student = build_model(ModelConfig(name="resnet8" if tiny else "resnet50", width=8), 1000)
    embed_dim = 1024 if tiny else 512
    return Distillation(student, language_model, embed_dim, config)


def _rate(step: Any, words: argparse.Namespace, device: torch.device) -> float:
    """Images a second over `--steps` steps after three to warm up."""
    for _ in range(3):
        step()
    _synchronise(device)
    began = time.perf_counter()
    for _ in range(words.steps):
        step()
    _synchronise(device)
    return words.steps * words.batch / (time.perf_counter() - began)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
