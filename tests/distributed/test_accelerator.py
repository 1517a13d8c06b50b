"""Accelerate is made for the strategy that the launch asked for, or there is an error."""

import pytest
import torch

from fedscale.distributed.accelerator import forget_deepspeed, make_accelerator
from fedscale.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)


def test_asking_for_fsdp_in_one_process_on_a_cpu_is_refused_for_real(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match="fsdp2 was asked for, but NO is in force"):
        make_accelerator(CPU, "no")


def test_fsdp1_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="fsdp_version=1 in the launch config: expected 2"):
        make_accelerator(CPU, "no")


def test_fsdp2_that_keeps_weights_on_the_cpu_is_refused(monkeypatch):
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2"), ("FSDP_OFFLOAD_PARAMS", "true")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"fsdp_offload_params=true in the launch config: .*; set it to false"):
        make_accelerator(CPU, "no")


def test_one_process_may_make_accelerators_of_different_precision_in_turn():
    for precision in ("no", "bf16", "no"):
        assert make_accelerator(CPU, precision).mixed_precision == precision


def test_after_training_under_zero3_transformers_makes_the_next_model_whole():
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    kept = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert kept.is_zero3() and is_deepspeed_zero3_enabled()
    forget_deepspeed()
    assert not is_deepspeed_zero3_enabled()
