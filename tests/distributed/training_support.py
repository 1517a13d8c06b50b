"""Starts `training_worker.py` as 1 to 3 ranks under a strategy, and reads what it left."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.ranks import ranks

WORKER = Path(__file__).with_name("training_worker.py")
LAUNCH = {
    "ddp": "",
    "fsdp2": "launch/accelerate/fsdp2.yaml",
    "zero1": "launch/deepspeed/zero1.json",
    "zero2": "launch/accelerate/zero2.yaml",
    "zero3": "launch/deepspeed/zero3.json",
    "zero3_offload": "launch/deepspeed/zero3_offload.json",
}
STRATEGIES = list(LAUNCH)


@dataclass
class Trained:
    losses: list[float]
    norms: list[float]
    bytes: list[int]
    weights: dict[str, torch.Tensor]


def worker(out: Path, count: int, strategy: str = "ddp", *words: str, fails: bool = False) -> str:
    out.mkdir(parents=True, exist_ok=True)
    launch = ["--launch", LAUNCH[strategy]] if count > 1 and LAUNCH[strategy] else []
    done = ranks(count, WORKER, out, *launch, *words)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr


def trained(out: Path, ranks: int, strategy: str = "ddp", *words: str) -> Trained:
    worker(out, ranks, strategy, *words)
    found = json.loads((out / "result.json").read_text())
    return Trained(found["losses"], found["norms"], found["bytes"], load_file(out / "weights.safetensors"))
