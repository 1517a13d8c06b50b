"""GPUs of its own for each worker's vLLM: an engine takes the first ones that it sees, whichever worker it is of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedscale.distributed.launch import on_this_host, sharing
from fedscale.errors import UserError

VISIBLE, AGENT_STORE = "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_USE_AGENT_STORE"


@contextmanager
def own_gpus(each: int) -> Iterator[None]:
    """Within the block this process, and those that it starts, see the `each` GPUs of this worker alone.

    Only where several are visible and several workers of the host share them. It must come before CUDA is initialised,
    and does not do that itself. Raises UserError where there are too few GPUs.
    """
    changes = {}
    if own := _own(each):
        changes[VISIBLE] = ",".join(own)
    if AGENT_STORE in os.environ:
        # Before 2.15 torch takes torchrun's word for every store, vLLM's own too, and waits for it (pytorch#191957).
        changes[AGENT_STORE] = "False"
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _own(each: int) -> list[str]:
    """This worker's GPUs, named as CUDA_VISIBLE_DEVICES names them; none where there is nothing to share out."""
    rank, workers = on_this_host()
    visible = torch.cuda.device_count() if workers > 1 else 0  # asks NVML, unless CUDA is initialised
    if visible < 2 or sharing(visible, of="GPUS") == 1:
        return []
    if each * workers > visible:
        raise UserError(
            f"caption.engine=vllm: {workers} workers of this host with caption.vllm.tensor_parallel_size={each} need "
            f"{each * workers} GPUs, and this one sees {visible}; let each see all GPUs, launch fewer workers, or "
            f"lower that size"
        )
    names = os.environ[VISIBLE].split(",") if VISIBLE in os.environ else [str(number) for number in range(visible)]
    return names[rank * each : (rank + 1) * each]
