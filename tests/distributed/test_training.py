"""Every strategy trains as one process does; what it saves goes on as if nothing had been; lost ranks are named."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedscale import checkpoints
from fedscale.distributed.training import repeated_blocks
from fedscale.models import ResNet8

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("training_worker.py")
LAUNCH = {
    "ddp": "",
    "fsdp2": "launch/accelerate/fsdp2.yaml",
    "zero1": "launch/deepspeed/zero1.json",
    "zero2": "launch/accelerate/zero2.yaml",
    "zero3": "launch/deepspeed/zero3.json",
}
STRATEGIES = list(LAUNCH)


@dataclass
class Trained:
    losses: list[float]
    norms: list[float]
    bytes: list[int]
    weights: dict[str, torch.Tensor]


def worker(out: Path, ranks: int, strategy: str = "ddp", *words: str, fails: bool = False) -> str:
    out.mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    launch = ["--launch", LAUNCH[strategy]] if ranks > 1 and LAUNCH[strategy] else []
    done = subprocess.run(
        [*launcher, str(WORKER), str(out), *launch, *words], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr


def trained(out: Path, ranks: int, strategy: str = "ddp", *words: str) -> Trained:
    worker(out, ranks, strategy, *words)
    found = json.loads((out / "result.json").read_text())
    return Trained(found["losses"], found["norms"], found["bytes"], load_file(out / "weights.safetensors"))


def assert_same(one: Trained, other: Trained, tolerance: float) -> None:
    assert one.losses == pytest.approx(other.losses, abs=tolerance)
    assert one.norms == pytest.approx(other.norms, abs=100 * tolerance)
    for name, weight in one.weights.items():
        torch.testing.assert_close(
            other.weights[name], weight, rtol=0, atol=10 * tolerance, msg=lambda m, n=name: n + m
        )


def test_blocks_that_repeat_are_the_units_the_outermost_ones():
    assert repeated_blocks(ResNet8(10, 8)) == ("BasicBlock",)
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ()
    layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2) for _ in range(2))
    assert repeated_blocks(nn.ModuleDict({"layers": layers})) == ("TransformerEncoderLayer",)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ["1", "4"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one_process_in_float64_with_batch_norm(tmp_path, strategy, accumulation):
    words = ["--dtype", "float64", "--norm", "batch", "--accumulation", accumulation]
    one = trained(tmp_path / "one", 1, "ddp", *words)
    two = trained(tmp_path / "two", 2, strategy, *words)
    assert_same(one, two, 1e-9)
    assert sum(one.losses[5:]) < sum(one.losses[:5]) and max(one.norms) > 0.5, "something was learnt, and clipped"


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ["1", "4"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_as_one_process_in_float32(tmp_path, strategy, accumulation):
    words = ["--accumulation", accumulation]
    assert_same(trained(tmp_path / "one", 1, "ddp", *words), trained(tmp_path / "two", 2, strategy, *words), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_a_rank_of_two_holds_about_half_of_the_parameters(tmp_path, strategy):
    whole = trained(tmp_path / "whole", 2, "ddp", "--steps", "1").bytes
    parts = trained(tmp_path / "parts", 2, strategy, "--steps", "1").bytes
    assert all(part < 0.65 * whole[0] for part in parts), (parts, whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_is_as_uninterrupted(tmp_path, strategy):
    straight = trained(tmp_path / "straight", 2, strategy)
    trained(tmp_path / "resumed", 2, strategy, "--save", "4")
    resumed = trained(tmp_path / "resumed", 2, strategy)
    assert resumed.losses == pytest.approx(straight.losses[4:], abs=1e-6)
    for name, weight in straight.weights.items():
        torch.testing.assert_close(resumed.weights[name], weight, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_ddp_goes_on_under_fsdp2_on_one_and_on_three_ranks_and_back(tmp_path):
    straight = trained(tmp_path / "straight", 1)
    out = tmp_path / "moving"
    losses = trained(out, 2, "ddp", "--save", "2").losses
    losses += trained(out, 2, "fsdp2", "--save", "4").losses
    losses += trained(out, 1, "ddp", "--save", "6").losses
    losses += trained(out, 3, "fsdp2", "--save", "8").losses
    last = trained(out, 3, "ddp")
    assert losses + last.losses == pytest.approx(straight.losses, abs=1e-5)
    assert checkpoints.newest(out, "step")[0] == 8


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_zero_goes_on_with_another_number_of_ranks_through_the_universal_form(tmp_path, strategy):
    straight = trained(tmp_path / "straight", 2, strategy)
    trained(tmp_path / "moving", 2, strategy, "--save", "4")
    moved = trained(tmp_path / "moving", 3, strategy)
    assert moved.losses == pytest.approx(straight.losses[4:], abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_ddp_is_refused_under_zero(tmp_path):
    trained(tmp_path, 2, "ddp", "--save", "2")
    assert "a checkpoint of ddp, deepspeed cannot go on from it" in worker(tmp_path, 2, "zero2", fails=True)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bf16_trains_under_every_strategy(tmp_path, strategy):
    found = trained(tmp_path, 2, strategy, "--precision", "bf16")
    assert sum(found.losses[5:]) < sum(found.losses[:5])
    assert all(weight.dtype == torch.float32 for weight in found.weights.values())
