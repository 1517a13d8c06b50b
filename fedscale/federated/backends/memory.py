"""How much memory there is, what lanes take of it, and how running out of it is recognised."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from fedscale.config.schema import FederateConfig
from fedscale.federated.flat import FlatLayout
from fedscale.federated.methods import Method

OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",  # of what torch's allocator does not serve: graphs, kernels that are loaded late
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
)


def free_bytes(device: torch.device) -> int:
    """Free memory of the device; of a CPU, what the system can give without swapping, within the cgroup's limit."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def lane_bytes(layout: FlatLayout, method: Method, settings: FederateConfig, itemsize: int) -> int:
    """Bytes of one lane: its model, a backward pass's gradients, the method's roles, momentum."""
    vectors = 1 + len(method.roles) + (settings.momentum > 0)
    small = sum(math.prod(shape) for shapes in (method.reports, method.tallies) for shape in shapes.values())
    return itemsize * (layout.size + vectors * layout.num_parameters + small)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's allocators, CUDA's own, or the libraries' that ask it for workspaces.

    In a CUDA graph's capture another error may follow, and take its place.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    told = any(words in str(error) for words in OUT_OF_MEMORY)
    return told or (error.__context__ is not None and is_out_of_memory(error.__context__))
