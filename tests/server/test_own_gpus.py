"""Each worker of a host has its own GPUs for vLLM, whatever names they have, and one line where they are too few."""

import os

import pytest
import torch

from fedscale.errors import UserError
from fedscale.server.caption.engines.own_gpus import own_gpus
from fedscale.server.caption.engines.vllm import VllmEngine
from tests.server.engines_support import engine_config
from tests.server.vllm_support import Plan, install

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "3"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}


def torchrun(rank: int, workers: int) -> dict[str, str]:
    names = {"RANK": rank, "WORLD_SIZE": workers, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": workers}
    return {name: str(value) for name, value in names.items()}


@pytest.fixture
def host(monkeypatch):
    """A worker's environment and how many GPUs it sees, `names` being CUDA_VISIBLE_DEVICES."""

    def stand(launched: dict[str, str], gpus: int, names: str | None = None) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in {**launched, **({"CUDA_VISIBLE_DEVICES": names} if names else {})}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return stand


@pytest.mark.parametrize(
    ("launched", "gpus", "names", "each", "own"),
    [
        (torchrun(3, 8), 8, None, 1, "3"),
        (torchrun(1, 4), 8, None, 2, "2,3"),
        (torchrun(1, 2), 4, "4,5,6,7", 2, "6,7"),
        (torchrun(1, 2), 2, "GPU-a,GPU-b", 1, "GPU-b"),
        ({**STEP, "SLURM_GPUS_ON_NODE": "8"}, 8, None, 2, "6,7"),
        ({**STEP, "SLURM_GPUS_ON_NODE": "8"}, 2, "0,1", 2, "0,1"),  # srun bound them to the task
        (torchrun(3, 8), 1, "5", 1, "5"),  # somebody gave each worker one
        (torchrun(3, 8), 0, None, 1, None),
        ({}, 8, None, 2, None),
        ({}, 8, "4,5,6", 2, "4,5,6"),
    ],
)
def test_a_worker_sees_its_own_gpus_and_afterwards_what_it_saw_before(host, launched, gpus, names, each, own):
    host(launched, gpus, names)
    with own_gpus(each):
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == own
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == names


def test_too_few_gpus_are_refused_in_one_line(host):
    host(torchrun(0, 3), 4)
    expected = r"3 workers of this host with caption\.vllm\.tensor_parallel_size=2 need 6 GPUs, and this one sees 4"
    with pytest.raises(UserError, match=expected) as caught, own_gpus(2):
        pass
    assert "\n" not in str(caught.value)


def test_vllm_is_imported_and_built_with_them(host, monkeypatch):
    host(torchrun(1, 2), 2)
    install(monkeypatch, plan := Plan())
    VllmEngine(engine_config("vllm")).close()
    assert plan.visible == "1" and "CUDA_VISIBLE_DEVICES" not in os.environ


def test_vllms_own_store_is_not_taken_for_that_of_torchruns_agent(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(RuntimeError), own_gpus(1):
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
        raise RuntimeError
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
