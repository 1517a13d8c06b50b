"""Who was launched, by what; and what the ranks find out together: backend, sums, clocks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedscale.doctor.clock import between_hosts
from fedscale.doctor.finding import Finding, Gravity, of_error
from fedscale.doctor.patient import Patient

if TYPE_CHECKING:
    from fedscale.distributed.mesh import Mesh

PATIENCE = 60.0  # seconds that a collective waits for the slowest rank
NUMBERS = 2**24  # float32: 64 MB
TIMES = 3  # after one that opens connections
LAUNCHERS = {  # the first variable that is set, most specific first
    "ACCELERATE_MIXED_PRECISION": "accelerate",
    "TORCHELASTIC_RUN_ID": "torchrun",
    "CROSS_RANK": "deepspeed",
    "RANK": "RANK and WORLD_SIZE",
    "SLURM_STEP_ID": "srun",
}
REDUCTION, BACKEND = "64 MB all-reduce", "backend"


def ranks(patient: Patient, environment: Mapping[str, str]) -> Finding:
    """How many ranks the launcher's variables tell of, and on this host."""
    place = patient.place
    by = next((name for variable, name in LAUNCHERS.items() if variable in environment), "")
    facts = {"ranks": place.world, "ranks_on_host": place.local_world, "launcher": by or None}
    if place.world == 1:
        return Finding("ranks", Gravity.FINE, f"1, {f'by {by}' if by else 'no launcher'}", facts=facts)
    return Finding("ranks", Gravity.FINE, f"{place.world}, by {by}; they meet at {place.address}", facts=facts)


def alone() -> list[Finding]:
    """What one process cannot find out."""
    remedy = "start the doctor as runs are: torchrun --standalone --nproc-per-node 2 -m fedscale doctor"
    return [Finding(REDUCTION, Gravity.UNCHECKED, "not measured: one process has nobody to sum with", remedy)]


def together(patient: Patient, mesh: Mesh) -> list[Finding]:
    """Backend, a checked and timed sum, the hosts' clocks; every rank calls it and finds the same."""
    import torch.distributed as dist

    hosts = [str(host) for host in mesh.gather_objects(patient.host)]
    backend = str(dist.get_backend())
    facts = {"backend": backend, "hosts": len(set(hosts)), "ranks": mesh.world}
    where = f"{mesh.world} ranks on {len(set(hosts))} host(s)"
    first = Finding(BACKEND, Gravity.FINE, f"{backend}, {where}", facts=facts)
    if backend == "gloo" and patient.device.type == "cuda":
        first = Finding(BACKEND, Gravity.NOTE, f"gloo, {where}, some of which share a GPU", "one rank a GPU", facts)
    found = [first, _reduction(patient, mesh)]
    mesh.barrier("the clocks")
    times = mesh.gather_objects(time.time())
    return [*found, between_hosts(times, hosts)] if len(set(hosts)) > 1 else found


def _reduction(patient: Patient, mesh: Mesh) -> Finding:
    """The sum over all ranks as stage 2 makes it; of each round the slowest rank's time, of the rounds the best."""
    import torch

    part = torch.full((NUMBERS,), float(mesh.rank + 1), device=mesh.device)
    wanted, took, right = mesh.world * (mesh.world + 1) / 2, list[float](), True
    for _ in range(1 + TIMES):
        tensor = part.clone()
        mesh.barrier("a sum of the doctor's")
        began = time.perf_counter()
        mesh.sum_over_clients(tensor)
        if mesh.device.type == "cuda":
            torch.cuda.synchronize(mesh.device)
        took.append(max(mesh.gather_objects(time.perf_counter() - began)))
        right = right and bool((tensor == wanted).all())
    if not all(mesh.gather_objects(right)):
        remedy = "see NCCL_DEBUG=INFO, or leave out the link or GPU between these ranks"
        return Finding(REDUCTION, Gravity.BROKEN, "the sum is wrong", remedy)
    best = min(took[1:])
    moved = 2 * (mesh.world - 1) / mesh.world * 4 * NUMBERS / best
    facts = {"seconds": round(best, 6), "bus_bytes_per_second": round(moved)}
    found = f"{best * 1e3:,.1f} ms, {moved / 1e9:.2f} GB/s a rank; the sum is right"
    return Finding(REDUCTION, Gravity.FINE, found, facts=facts)


def not_met(error: Exception) -> Finding:
    """Ranks that do not come together."""
    return of_error(REDUCTION, str(error), Gravity.BROKEN)
