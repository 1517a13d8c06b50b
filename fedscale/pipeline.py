"""`fedscale run`: every stage of every child run, each shared result made once, `jobs` of them at a time."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedscale.config import Config
from fedscale.data.workers import end_with_parent
from fedscale.errors import Stopped, WorkerLost
from fedscale.progress import QueueReporter, forward
from fedscale.runs import STAGES, RunFolder
from fedscale.session import Flag, Session
from fedscale.stages import children, needed, prerequisites, run_stage, stage_folder


@dataclass(frozen=True)
class Job:
    """One stage folder to be filled, and the folders that must be complete first."""

    config: Config
    stage: str
    folder: Path
    after: frozenset[Path] = field(default_factory=frozenset)


def plan(config: Config) -> list[Job]:
    """The stage folders of all child runs, each once, every one after what it reads."""
    jobs: dict[Path, Job] = {}
    for child in children(config):
        for stage in needed(child):
            after = frozenset(stage_folder(child, s).path.resolve() for s in prerequisites(child, stage))
            folder = stage_folder(child, stage).path.resolve()
            jobs.setdefault(folder, Job(child, stage, folder, after))
    return list(jobs.values())


def execute(config: Config, session: Session) -> None:
    """Build the shards and stores, then run the plan. Raises the first UserError or Stopped of any stage."""
    jobs = plan(config)
    for job in jobs:  # before any of them works for minutes
        stage_folder(job.config, job.stage).check()
    RunFolder(Path(config.out) / config.name).describe(config)
    for child in children(config):
        RunFolder.of(child).describe(child)
    if all(stage_folder(job.config, job.stage).complete for job in jobs):
        session.reporter.say(f"{Path(config.out) / config.name}: all stages are complete")
        return
    prepare_data(config, session)
    if config.jobs == 1:
        for job in jobs:
            run_stage(job.config, job.stage, session)
    else:
        _execute_in_processes(jobs, config.jobs, session)


def prepare_data(config: Config, session: Session) -> None:
    """Build what all stages read before any of them starts, so that no two build it at once."""
    from fedscale.data.build import ensure_shards
    from fedscale.data.store import open_store

    manifest = ensure_shards(config.data, session.reporter)
    for split in ("train", config.eval.split):
        open_store(manifest, split, config.data.image_size, session.reporter, config.data.max_corrupt)


_worker_session: Session  # set once in each worker process by `_start_worker`


def worker_session() -> Session:
    """Inside one of `workers`: the session that reports to the parent, and stops when it says so."""
    return _worker_session


@contextmanager
def workers(count: int, session: Session) -> Iterator[tuple[ProcessPoolExecutor, Flag]]:
    """A pool of processes that report to `session`, and the flag that stops them all. A dead one is a WorkerLost."""
    context = multiprocessing.get_context("spawn")
    events, stop = context.Queue(), context.Event()
    listener = threading.Thread(target=forward, args=(events, session.reporter))
    listener.start()
    try:
        with ProcessPoolExecutor(count, context, _start_worker, (events, stop)) as pool:
            yield pool, stop
    except BrokenProcessPool:
        raise WorkerLost(
            "a worker process died (killed, or out of memory: then use fewer jobs=); start the same command again: it "
            "resumes"
        ) from None
    finally:
        events.put(None)
        listener.join()


def _start_worker(events: Any, stop: Flag) -> None:
    import signal

    # The parent alone listens to signals, and passes them on through `stop`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    global _worker_session
    _worker_session = Session(QueueReporter(events), stop)


def _work(job: Job) -> None:
    run_stage(job.config, job.stage, _worker_session)


def _execute_in_processes(jobs: list[Job], count: int, session: Session) -> None:
    waiting, finished = list(jobs), set[Path]()
    running: dict[Future[None], Job] = {}
    with workers(count, session) as (pool, stop):
        while waiting or running:
            if session.stop_requested:
                stop.set()
            ready = [job for job in waiting if job.after <= finished] if not stop.is_set() else []
            # The stages that most others wait for go first, so that no worker is left without work.
            ready.sort(key=lambda job: STAGES.index(job.stage))
            for job in ready[: count - len(running)]:
                running[pool.submit(_work, job)] = job
                waiting.remove(job)
            if not running:
                raise Stopped("stopped between two stages")
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                if future.exception() is not None:
                    stop.set()  # the other stages save their state and end too
                future.result()
                finished.add(job.folder)
