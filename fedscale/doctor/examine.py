"""All checks, on every rank; their findings brought together, so that each rank knows the whole."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from fedscale.config import Config
from fedscale.distributed.launch import this_place
from fedscale.distributed.mesh import RankLost, open_mesh
from fedscale.doctor.captioning import captioning
from fedscale.doctor.clock import clock
from fedscale.doctor.data_there import pool, shards, store
from fedscale.doctor.deepspeed_ops import deepspeed_ops
from fedscale.doctor.devices import device
from fedscale.doctor.extras import extras
from fedscale.doctor.finding import Finding, Gravity, merged, of_error
from fedscale.doctor.folders import run_folder, shards_folder
from fedscale.doctor.lanes import lanes
from fedscale.doctor.patient import Patient
from fedscale.doctor.plan import plan, results
from fedscale.doctor.ranks import BACKEND, PATIENCE, REDUCTION, alone, not_met, ranks, together
from fedscale.doctor.shared_memory import shared_memory
from fedscale.doctor.slurm import slurm
from fedscale.doctor.threads import threads
from fedscale.doctor.versions import versions
from fedscale.doctor.weights import teachers
from fedscale.errors import UserError

Found = Finding | list[Finding] | None
Check = Callable[[Patient], Found]

OF_A_RANK: dict[str, Check] = {"device": device, "threads": threads}
OF_A_HOST: dict[str, Check] = {
    "shared memory": shared_memory,
    "run folder": run_folder,
    "shards' folder": shards_folder,
    "libraries": versions,
    "extras": extras,
    "DeepSpeed's ops": deepspeed_ops,
    "Slurm": slurm,
    "clock": clock,
}
OF_A_CONFIG: dict[str, Check] = {
    "config": plan,
    "results": results,
    "shards": shards,
    "open pool": pool,
    "client store": store,
    "teachers": teachers,
    "captioning": captioning,
    "memory for lanes": lanes,
}


@dataclass(frozen=True)
class Examination:
    """The findings of all ranks, one a check. `lost`: what kept the ranks from coming together, if anything did."""

    findings: list[Finding]
    ranks: int
    is_main: bool
    lost: RankLost | None = None


def examine(config: Config, named: bool, say: Callable[[str], None]) -> Examination:
    """Every check that this launch can make; `say` takes a line of the ranks' meeting.

    Raises UserError where the launcher's variables tell no place.
    """
    patient = Patient(config, named, this_place())
    own = [
        dataclasses.replace(finding, host=patient.host, rank=patient.place.rank)
        for finding in (ranks(patient, os.environ), *_own(patient))
    ]
    return _met(patient, own, say)


def _met(patient: Patient, own: list[Finding], say: Callable[[str], None]) -> Examination:
    place = patient.place
    done = partial(Examination, ranks=place.world, is_main=place.rank == 0)
    if place.world == 1:
        return done(_in_order([*own, *alone()]))
    try:
        with open_mesh(patient.device, 1, PATIENCE, say, "doctor") as mesh:
            shared = together(patient, mesh)
            every = [finding for findings in mesh.gather_objects(own) for finding in findings]
        return done(_in_order([*merged(every), *shared]))
    except RankLost as lost:
        return done(_in_order([*own, not_met(lost)]), lost=lost)
    except UserError as error:  # a device that is not there, ranks of two kinds
        return done(_in_order([*own, of_error(BACKEND, str(error))]))


def _in_order(findings: list[Finding]) -> list[Finding]:
    """What the ranks found together stands behind who they are."""
    first = ("ranks", BACKEND, REDUCTION)
    return sorted(findings, key=lambda one: first.index(one.check) if one.check in first else len(first))


def _own(patient: Patient) -> Iterator[Finding]:
    checks = dict(OF_A_RANK)
    if patient.place.local_rank == 0:
        checks |= OF_A_HOST | (OF_A_CONFIG if patient.named else {})
    for name, check in checks.items():
        yield from carried_out(name, check, patient)


def carried_out(name: str, check: Check, patient: Patient) -> list[Finding]:
    """What the check finds; where it breaks off, that it could not be made and why, so that the others are made."""
    try:
        found = check(patient)
    except UserError as error:
        return [of_error(name, str(error))]
    except Exception as error:  # whatever it is, it is about one check
        line = next(iter(str(error).splitlines()), "")
        return [Finding(name, Gravity.UNCHECKED, f"could not be checked ({type(error).__name__}: {line})")]
    if found is None:
        return []
    return found if isinstance(found, list) else [found]
