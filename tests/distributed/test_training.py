"""Two ranks train under every strategy as one process does."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedscale.distributed.mesh import Mesh
from fedscale.distributed.training import Training, repeated_blocks
from fedscale.errors import UserError
from fedscale.models import ResNet8
from tests.distributed.training_support import Trained, trained

DEEPSPEED = [("zero1", "4"), ("zero2", "1"), ("zero2", "4"), ("zero3", "4"), ("zero3_offload", "1")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[..., Trained]:
    """What one process makes of the same words, once."""
    return functools.cache(lambda *words: trained(tmp_path_factory.mktemp("alone"), 1, "ddp", *words))


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


def test_weights_that_a_strategy_puts_on_another_device_than_the_ranks_compute_on_are_refused():
    class Stuck(nn.Linear):
        def to(self, *_: object) -> nn.Linear:
            return self

    module = Stuck(2, 2, device="meta")  # as FSDP2 takes the GPU of a machine though device=cpu
    optimizer = torch.optim.AdamW(module.parameters())
    with pytest.raises(UserError, match=r"device=cpu: single put the weights on meta; hide the GPUs"):
        Training(Mesh(), module, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ["1", "4"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one_process_in_float64_with_batch_norm(tmp_path, alone, strategy, accumulation):
    words = ["--dtype", "float64", "--norm", "batch", "--accumulation", accumulation]
    one = alone(*words)
    assert_same(one, trained(tmp_path, 2, strategy, *words), 1e-9)
    assert sum(one.losses[5:]) < sum(one.losses[:5]) and max(one.norms) > 0.5, "something was learnt, and clipped"


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "accumulation"), DEEPSPEED)
def test_two_ranks_train_as_one_process_in_float32(tmp_path, alone, strategy, accumulation):
    words = ["--accumulation", accumulation]
    assert_same(alone(*words), trained(tmp_path, 2, strategy, *words), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_process_trains_one_run_after_another_each_on_a_mesh_of_its_own(tmp_path, alone, strategy):
    assert_same(alone(), trained(tmp_path, 2, strategy, "--times", "2"), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_a_rank_of_two_holds_about_half_of_the_parameters(tmp_path, strategy):
    whole = trained(tmp_path / "whole", 2, "ddp", "--steps", "1").bytes
    parts = trained(tmp_path / "parts", 2, strategy, "--steps", "1").bytes
    assert all(part < 0.65 * whole[0] for part in parts), (parts, whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "zero2"])
def test_bf16_trains(tmp_path, strategy):
    found = trained(tmp_path, 2, strategy, "--precision", "bf16")
    assert sum(found.losses[5:]) < sum(found.losses[:5])
    assert all(weight.dtype == torch.float32 for weight in found.weights.values())
