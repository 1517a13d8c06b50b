"""The strategy that the launcher asked for is the one in force, or there is an error."""

import pytest
import torch

from fedscale.distributed.accelerator import any_rank, asked_strategy, check_strategy, make_accelerator
from fedscale.errors import UserError


@pytest.mark.parametrize(
    ("environment", "strategy"),
    [
        ({}, "single"),
        ({"WORLD_SIZE": "2"}, "ddp"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "fsdp"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "deepspeed"),
        ({"ACCELERATE_USE_FSDP": "false"}, "single"),
    ],
)
def test_the_launchers_variables_say_what_is_asked(environment, strategy):
    assert asked_strategy(environment) == strategy


def test_a_silent_fall_back_is_an_error():
    check_strategy("ddp", 2, "MULTI_CPU", 2)
    with pytest.raises(UserError, match="fsdp was asked for, but MULTI_CPU is in force"):
        check_strategy("fsdp", 2, "MULTI_CPU", 2)
    with pytest.raises(UserError, match="ddp was asked for, but NO is in force"):
        check_strategy("ddp", 2, "NO", 1)
    with pytest.raises(UserError, match="2 processes were launched, but it sees 1"):
        check_strategy("deepspeed", 2, "DEEPSPEED", 1)


def test_asking_for_fsdp_on_a_cpu_is_refused_for_real(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="fsdp was asked for"):
        make_accelerator(torch.device("cpu"), "no")


def test_one_process_may_make_accelerators_of_different_precision_in_turn():
    for precision in ("no", "bf16", "no"):
        accelerator = make_accelerator(torch.device("cpu"), precision)
        assert accelerator.mixed_precision == precision and accelerator.device.type == "cpu"
    assert any_rank(accelerator, True) is True and any_rank(accelerator, False) is False
