"""Which device and how many threads a process computes with."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

import torch

from fedscale.config.schema import Config
from fedscale.data.workers import cores
from fedscale.distributed.launch import sharing
from fedscale.errors import UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


def pick_device(config: Config) -> torch.device:
    """The device that `device=` asks for; of several GPUs that are visible, each worker of a host takes one of its own.

    Raises UserError when it asks for a GPU that is not there.
    """
    if config.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        # What torch's deterministic mode asks for; cuBLAS reads it once, at the process's first product in any stage.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        visible = torch.cuda.device_count()  # 1 where the launcher gives each worker only its own to see
        return torch.device("cuda", local_rank() % visible) if visible > 1 else torch.device("cuda")
    if config.device == "cuda":
        raise UserError("device=cuda: no CUDA GPU is visible to torch; use device=cpu or device=auto")
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """What the hardware is called: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def local_rank() -> int:
    """This process's number among the workers of its host, by torchrun (LOCAL_RANK) or Slurm; 0 when started alone."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what training frees, for the next step to take again; nothing elsewhere than on glibc.

    By default it gives blocks of megabytes back to the system and asks for them anew, page fault by page fault: 340,000
    faults and a sixth of the time in a round of ResNet-8 on a CPU.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 64 << 20)):
        tune(option, value)


def threads_for(config: Config) -> int:
    """CPU threads of this process: `threads`, or the cores for each job or rank of this host."""
    return config.threads or max(1, cores() // max(config.jobs, sharing(cores())))


def use_threads(config: Config) -> int:
    """Set this process's CPU threads to those that are for it; returns them."""
    threads = threads_for(config)
    torch.set_num_threads(threads)
    return threads
