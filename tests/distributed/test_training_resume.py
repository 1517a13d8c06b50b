"""What a strategy saves goes on as if nothing had been, with other numbers of ranks too."""

import functools
from collections.abc import Callable

import pytest
import torch

from fedscale import checkpoints
from tests.distributed.training_support import STRATEGIES, Trained, trained, worker


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[..., Trained]:
    """What so many ranks make of a strategy in one go, once."""
    return functools.cache(lambda *words: trained(tmp_path_factory.mktemp("undisturbed"), *words))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_is_as_uninterrupted(tmp_path, undisturbed, strategy):
    straight = undisturbed(2, strategy)
    trained(tmp_path, 2, strategy, "--save", "4")
    resumed = trained(tmp_path, 2, strategy)
    assert resumed.losses == pytest.approx(straight.losses[4:], abs=1e-6)
    for name, weight in straight.weights.items():
        torch.testing.assert_close(resumed.weights[name], weight, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_ddp_goes_on_under_fsdp2_on_one_and_on_three_ranks_and_back(tmp_path, undisturbed):
    straight, out = undisturbed(1), tmp_path
    losses = trained(out, 2, "ddp", "--save", "2").losses
    losses += trained(out, 2, "fsdp2", "--save", "4").losses
    losses += trained(out, 1, "ddp", "--save", "6").losses
    losses += trained(out, 3, "fsdp2", "--save", "8").losses
    last = trained(out, 3, "ddp")
    assert losses + last.losses == pytest.approx(straight.losses, abs=1e-5)
    assert checkpoints.newest(out, "step")[0] == 8


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_zero_goes_on_with_another_number_of_ranks_through_the_universal_form(tmp_path, undisturbed, strategy):
    straight = undisturbed(2, strategy)
    trained(tmp_path, 2, strategy, "--save", "4")
    moved = trained(tmp_path, 3, strategy)
    assert moved.losses == pytest.approx(straight.losses[4:], abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_ddp_is_refused_under_zero(tmp_path):
    trained(tmp_path, 2, "ddp", "--save", "2")
    assert "a checkpoint of ddp, deepspeed cannot go on from it" in worker(tmp_path, 2, "zero2", fails=True)
