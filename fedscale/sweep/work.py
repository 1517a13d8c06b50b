"""The runs carried out, by any number of workers: processes of one command, tasks of an array, other machines.

A worker claims a run by a lease in the sweep's `locks/`, and each shared stage (captions, pretraining, a federation
that an alignment starts from) by one of its own, so that nothing is worked on twice at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import replace

from fedscale import files
from fedscale.config import to_yaml
from fedscale.errors import Diverged, Stopped, UserError
from fedscale.lease import Lease, Leases
from fedscale.pipeline import prepare_data, worker_session, workers
from fedscale.runs import RunFolder
from fedscale.session import Either, Session
from fedscale.stages import needed, result_folder, run_stage
from fedscale.sweep.plan import Sweep, SweepRun
from fedscale.sweep.status import complete, failure, lease_name, leases_of, note_failure, owners
from fedscale.sweep.tuning import record, runs


def execute(sweep: Sweep, session: Session) -> list[str]:
    """Carry out what is unfinished, `jobs` of the base config at a time; returns a line for each that diverged.

    Beside other workers of the same sweep it takes what they have not claimed, and waits for the rest. Raises
    UserError and Stopped like the stages.
    """
    _describe(sweep)
    if sweep.base.jobs == 1:
        _work(sweep, session)
    else:
        _work_in_processes(sweep, session)
    record(sweep)
    return [f"{run.name}: {line}" for run in runs(sweep) if run.kind == "final" and (line := failure(run))]


def execute_one(sweep: Sweep, number: int, session: Session) -> None:
    """Carry out run `number` alone; one that diverged before is tried again.

    Raises UserError when there is no such run, its tuning is unfinished, or another worker has it.
    """
    listed = list(runs(sweep))
    if not 0 <= number < len(listed):
        raise UserError(f"--only {number}: expected a run from 0 to {len(listed) - 1}; --list shows them")
    run = listed[number]
    if complete(run):
        session.reporter.say(f"run {number} ({run.name}): complete, nothing to do")
        return
    if run.after:
        raise UserError(
            f"--only {number}: {run.name} waits for the tuning of {run.method} (runs {run.after[0]} to "
            f"{run.after[-1]}); carry these out first"
        )
    _describe(sweep)
    leases, name = leases_of(sweep), lease_name(run)
    lease = leases.claim(name)
    if lease is None:
        leases.revive([name], lambda: session.stop_requested)
        lease = leases.claim(name)
    if lease is None:
        raise UserError(
            f"--only {number}: {run.name} is being worked on by {owners(sweep).get(name, 'another worker')}"
        )
    with lease:
        failed = _carry_out(run, leases, lease, session)
    if run.kind == "tune":
        record(sweep)
    elif failed:
        raise UserError(f"{run.name}: {failed}")


def _describe(sweep: Sweep) -> None:
    if (sweep.folder / "config.yaml").exists() and not (sweep.folder / "sweep.yaml").exists():
        raise UserError(f"{sweep.folder}: holds runs that are no sweep's; choose another name= or out=")
    files.write_text(sweep.folder / "sweep.yaml", to_yaml(sweep.config))


def _work(sweep: Sweep, session: Session) -> None:
    """One worker: a run after the other, until none is left."""
    leases, over, told = leases_of(sweep), set[int](), False
    while True:
        left = [run for run in runs(sweep) if run.number not in over]
        over |= {run.number for run in left if not run.after and (complete(run) or failure(run))}
        left = [run for run in left if run.number not in over]
        if not left:
            return
        if session.stop_requested:
            raise Stopped(f"sweep: stopped, {len(left)} runs are left")
        ready = [run for run in left if not run.after]
        run, lease = _claimed(ready, sweep, leases)
        if run is None or lease is None:
            if not told:
                session.reporter.say(f"sweep: the {len(ready)} runs that could be done now are with other workers")
            told = True
            leases.revive([lease_name(run) for run in ready], lambda: session.stop_requested)
            continue
        told = False
        with lease:
            if complete(run) or failure(run):  # by a worker that had it when we looked
                continue
            session.reporter.say(f"run {run.number} ({run.name})")
            failed = _carry_out(run, leases, lease, session)
            if failed:
                session.reporter.say(f"run {run.number} ({run.name}) diverged, the others go on: {failed}")


def _claimed(ready: list[SweepRun], sweep: Sweep, leases: Leases) -> tuple[SweepRun | None, Lease | None]:
    """The first run that nobody has, best one whose next stage nobody works on for another run."""
    held = owners(sweep)
    free = (run for run in ready if lease_name(run) not in held)
    later = []
    for run in free:
        if _next_stage(run) in held:
            later.append(run)
        elif lease := leases.claim(lease_name(run)):
            return run, lease
    return next(((run, lease) for run in later if (lease := leases.claim(lease_name(run)))), (None, None))


def _next_stage(run: SweepRun) -> str:
    """The name of the lease under which the run's first unfinished stage is worked on; '' where all are finished."""
    folders = (result_folder(run.config, stage) for stage in needed(run.config))
    return next((folder.path.name for folder in folders if not folder.complete), "")


def _carry_out(run: SweepRun, leases: Leases, lease: Lease, session: Session) -> str:
    """All stages of a claimed run; why it diverged, or ''."""
    config = run.config
    RunFolder.of(config).describe(config)
    session = _stopped_by(session, lease)
    try:
        with _held(leases, "data", session):
            prepare_data(config, session)
        for stage in needed(config):
            if stage == "align":  # the run's own
                run_stage(config, stage, session, wait=True)
                continue
            with _held(leases, result_folder(config, stage).path.name, session) as shared:
                run_stage(config, stage, _stopped_by(session, shared), wait=True)
    except Diverged as error:
        note_failure(run, error)
        return str(error)
    return ""


@contextmanager
def _held(leases: Leases, name: str, session: Session) -> Iterator[Lease]:
    """The lease, once no other worker has it. Raises Stopped while waiting."""
    waiting = False
    while (lease := leases.claim(name)) is None:
        if session.stop_requested:
            raise Stopped(f"sweep: stopped while another worker was at {name}")
        if not waiting:
            session.reporter.say(f"sweep: another worker is at {name}, waiting for it")
        waiting = True
        leases.revive([name], lambda: session.stop_requested)
    with lease:
        yield lease


def _stopped_by(session: Session, lease: Lease) -> Session:
    """The session, stopped also when another worker took this one for dead and has the lease now."""
    return replace(session, stop=Either(session.stop, lease.taken))


def _work_in_processes(sweep: Sweep, session: Session) -> None:
    with workers(sweep.base.jobs, session) as (pool, stop):
        running = {pool.submit(_work_alone, sweep) for _ in range(sweep.base.jobs)}
        while running:
            if session.stop_requested:
                stop.set()
            done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                if future.exception() is not None:
                    stop.set()  # the others save their state and end too
                future.result()


def _work_alone(sweep: Sweep) -> None:
    _work(sweep, worker_session())
