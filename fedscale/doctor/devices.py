"""The device that this rank computes on: there, with room, and computing right."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient

CHECK = "device"
GIB = 2**30


def device(patient: Patient) -> Finding:
    """Name and free memory, after a product of matrices that has to come out right. Raises UserError: no such GPU."""
    where = patient.device
    free = _free_bytes(where)
    facts = {"type": where.type, "free_bytes": free, "torch_cuda": torch.version.cuda}
    # Whole numbers, exact in any precision, TF32 included.
    left, right = torch.arange(64.0, device=where).view(8, 8).fmod(5), 2 * torch.eye(8, device=where)
    if not torch.equal((left @ right).cpu(), left.cpu() * 2):
        return Finding(CHECK, Gravity.BROKEN, f"{where}: a product of 8 × 8 matrices is wrong", "leave that GPU out")
    if where.type == "cpu":
        found = f"cpu, {free / GIB:.1f} GiB of memory free"
        if patient.config.device == "auto" and _has_driver():
            remedy = "see CUDA_VISIBLE_DEVICES, and whether the driver is as new as torch's CUDA"
            cuda = torch.version.cuda or "none"
            return Finding(
                CHECK,
                Gravity.NOTE,
                f"{found}; an NVIDIA driver is here, torch (CUDA {cuda}) sees no GPU",
                remedy,
                facts,
            )
        return Finding(CHECK, Gravity.FINE, found, facts=facts, worse=1 / (1 + free))
    card = torch.cuda.get_device_properties(where)
    facts |= {"name": card.name, "total_bytes": card.total_memory, "visible": torch.cuda.device_count()}
    found = f"{where}: {card.name}, {free / GIB:.1f} of {card.total_memory / GIB:.1f} GiB free, {facts['visible']} seen"
    if free < card.total_memory / 2:
        return Finding(CHECK, Gravity.NOTE, found, "others compute on this GPU: nvidia-smi names them", facts)
    return Finding(CHECK, Gravity.FINE, found, facts=facts, worse=1 / (1 + free))


def _free_bytes(where: torch.device) -> int:
    from fedscale.federated.backends.memory import free_bytes  # what stage 2 itself goes by

    return free_bytes(where)


def _has_driver() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
