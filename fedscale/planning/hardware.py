"""Devices by their vendors' data sheets, and the share of a peak that a kind of work is assumed to reach.

Nothing here was measured by this project: `--rates` puts measured rates in its place. Operations are dense ones,
without sparsity; bandwidths of links are those of one direction.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fedscale.errors import UserError
from fedscale.planning.work import KINDS

GIB = 2**30
RESERVED = 2.0 * GIB  # of a GPU's memory: the context, the libraries' workspaces, fragmentation [assumed]


@dataclass(frozen=True)
class Hardware:
    """One kind of node: its devices' memory in GiB, peaks in TFLOP/s, bandwidths in GB/s of one direction."""

    name: str
    memory: float
    fp32: float
    tf32: float
    bf16: float
    bandwidth: float
    link: float  # of a device to its neighbours within the node
    wire: float  # of a node to others
    per_node: int = 8
    cores: int = 96  # of a node, for reading and decoding

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    @property
    def usable(self) -> float:
        """Bytes of a device's memory that a run may fill."""
        return self.memory * GIB - (0 if self.is_cpu else RESERVED)


# Nodes: 8 GPUs as in NVIDIA's DGX systems, whose guides give the network (A100: 8 × 200 Gb/s; H100, H200, B200: 8 ×
# 400 Gb/s) and the cores (128, 112, 112, 112); V100: DGX-1, 4 × 100 Gb/s, 40 cores; L40S: a usual server, 2 × 200 Gb/s.
GPUS = {
    one.name: one
    for one in (
        # V100 SXM2 32 GB: 15.7 TFLOP/s fp32, 125 with tensor cores (fp16, which stands for bf16 here: it has none; nor
        # TF32); 900 GB/s; NVLink 300 GB/s both ways. NVIDIA V100 data sheet, 2020.
        Hardware("v100", 32, 15.7, 15.7, 125.0, 900, 150, 50, cores=40),
        # A100 SXM 80 GB: 19.5 fp32, 156 TF32, 312 bf16; 2,039 GB/s; NVLink 600 GB/s. NVIDIA A100 data sheet, 2021.
        Hardware("a100", 80, 19.5, 156.0, 312.0, 2039, 300, 200, cores=128),
        # L40S: 91.6 fp32, 183 TF32, 362 bf16; 48 GB, 864 GB/s; PCIe 4 × 16, 64 GB/s both ways. NVIDIA L40S data sheet.
        Hardware("l40s", 48, 91.6, 183.0, 362.0, 864, 32, 50, cores=64),
        # H100 SXM: 67 fp32, 989 TF32 and 1,979 bf16 with sparsity, so half of these; 80 GB at 3.35 TB/s; NVLink 900
        # GB/s. NVIDIA H100 data sheet, 2023.
        Hardware("h100", 80, 67.0, 494.5, 989.5, 3350, 450, 400, cores=112),
        # H200 SXM: H100's operations; 141 GB at 4.8 TB/s. NVIDIA H200 data sheet, 2024.
        Hardware("h200", 141, 67.0, 494.5, 989.5, 4800, 450, 400, cores=112),
        # B200 (HGX): 75 fp32, 1,100 TF32 and 2,250 bf16, dense; 180 GB at 7.7 TB/s; NVLink 1.8 TB/s. NVIDIA HGX B200
        # data sheet, 2025.
        Hardware("b200", 180, 75.0, 1100.0, 2250.0, 7700, 900, 400, cores=112),
    )
}
# One core: 2.5 GHz × two 8-wide fused multiply-adds; 8 GB/s of memory each; ranks send through the memory. [assumed]
CPU_TFLOPS, CPU_BANDWIDTH, CPU_LINK, CPU_WIRE = 0.08, 8, 1.0, 1.25

SHARES = {  # of the peak [assumed until measured]
    "conv": 0.35,
    "matmul": 0.45,
    "traffic": 0.6,
    "link": 0.6,
    "wire": 0.5,
}
SECONDS = {  # of one unit, where no data sheet says anything [assumed until measured]
    "call": 1.5e-5,  # two or three kernels, queued from Python
    "image": 1.0e-4,  # opening a JPEG or PNG, and copying it into a batch
    "pixel": 1.8e-8,  # 3.5 ms for 500 × 375, resizing included, on one 2.3 GHz core (server/pretrain/batch.py)
    "read": 5.0e-10,  # 2 GB/s a node of a parallel file system
    "write": 1.0e-9,
    "message": 1.0e-5,
    "round": 0.05,
    "start": 30.0,
}
CPU_SECONDS = {"call": 2.0e-5, "message": 2.0e-4, "start": 3.0, "round": 0.01, "read": 1.0e-9, "crowd": 0.0}


def hardware(name: str, cores: int = 0) -> Hardware:
    """The node of this name; a `cpu` has so many cores, or this machine's. Raises UserError for another name."""
    if name == "cpu":
        cores = cores or os.cpu_count() or 1
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        return Hardware("cpu", memory, CPU_TFLOPS, CPU_TFLOPS, CPU_TFLOPS, CPU_BANDWIDTH, CPU_LINK, CPU_WIRE, 1, cores)
    if name not in GPUS:
        raise UserError(f"--gpu {name}: expected one of {', '.join([*GPUS, 'cpu'])}")
    return GPUS[name]


def seconds_of(kind: str, node: Hardware) -> float:
    """Seconds of one unit of this kind by the data sheet and the assumed share; of a CPU, on one core."""
    family, _, precision = kind.partition(".")
    if precision:
        return 1 / (getattr(node, precision) * 1e12 * SHARES[family])
    if node.is_cpu and kind in CPU_SECONDS:
        return CPU_SECONDS[kind]
    if kind == "crowd":
        return 0.0  # each GPU has a memory of its own
    if kind in SECONDS:
        return SECONDS[kind]
    peak = {"traffic": node.bandwidth, "link": node.link, "wire": node.wire}[kind]
    return 1 / (peak * 1e9 * SHARES[kind])


def sheet(node: Hardware) -> dict[str, float]:
    """Seconds of one unit of every kind."""
    return {kind: seconds_of(kind, node) for kind in KINDS}
