"""Work shard by shard in parallel processes: few shards in flight, one bar, and no worker outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, TypeVar

from fedscale.errors import UserError
from fedscale.progress import Task

POLL = 0.1  # seconds between two looks at how far the workers are
FEW = 10_000  # images that take one process about as long as starting several would

Item = TypeVar("Item")
Result = TypeVar("Result")


class Meter(Protocol):
    """What the calls of one piece of work share, whichever process they run in."""

    def advance(self) -> None:
        """One image more is done. Raises Cancelled where the work has been given up."""

    def fail(self) -> int:
        """One image more cannot be used; returns how many that are by now, in all processes together."""


class Cancelled(Exception):
    """Ends a worker's call whose result nobody waits for any more."""


def cores() -> int:
    """The CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes(jobs: int | None, shards: int, images: int) -> int:
    """How many processes to start: `jobs`, but no more than shards. None: one a core where that is worth it.

    It is not for a few images, nor for a process that is one of several itself (a worker of `fedscale run`, a rank of a
    launch), since the others have the cores.
    """
    if jobs is None:
        alone = multiprocessing.parent_process() is None and int(os.environ.get("WORLD_SIZE", "1")) == 1
        jobs = cores() if alone and images > FEW else 1
    return max(1, min(jobs, shards))


def threads_each(jobs: int) -> int | None:
    """How many threads each of `jobs` processes may decode with, see `images.threaded`: one a core in all."""
    return None if jobs == 1 else max(1, cores() // jobs)


def in_processes(
    work: Callable[[Item, Meter], Result], items: Iterable[Item], jobs: int, task: Task
) -> Generator[Result, None, None]:
    """`work(item, meter)` for each item, in the items' order, by `jobs` spawned processes; 1 works in this process.

    At most `2 * jobs` items are drawn ahead of the results, so that memory has a bound. Raises the first error of
    `work` once the other calls have ended (each at its next image), UserError where a process was killed. To be closed
    where it is left early.
    """
    if jobs == 1:
        meter = _LocalMeter(task)
        for item in items:
            yield work(item, meter)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
    shared = _SharedMeter(context)
    waiting, running, finished = enumerate(items), dict[Future[Result], int](), dict[int, Result]()
    following = 0
    try:
        with ProcessPoolExecutor(jobs, context, _start_worker, (shared,)) as pool:
            try:
                while True:
                    for number, item in islice(waiting, 2 * jobs - len(running) - len(finished)):
                        with _held_back(signal.SIGINT):
                            running[pool.submit(_call, work, item)] = number
                    if not running:
                        return
                    done, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                    shared.show(task)
                    for future in done:
                        finished[running.pop(future)] = future.result()
                    while following in finished:
                        yield finished.pop(following)
                        following += 1
            finally:
                shared.cancel()
    except BrokenProcessPool:
        raise UserError(
            f"jobs={jobs}: a worker process was killed (out of memory?); expected all to live; use fewer jobs"
        ) from None


class _LocalMeter:
    def __init__(self, task: Task) -> None:
        self._task, self._failed = task, 0

    def advance(self) -> None:
        self._task.advance()

    def fail(self) -> int:
        self._failed += 1
        return self._failed


class _SharedMeter:
    """Counts in shared memory; a worker that is killed while it counts must not make the parent wait for its lock."""

    def __init__(self, context: Any) -> None:
        self._done, self._failed = context.Value("q"), context.Value("q")
        self._cancelled = context.Value("b", lock=False)
        self._shown = 0

    def advance(self) -> None:
        self.check()
        with self._done.get_lock():
            self._done.get_obj().value += 1

    def fail(self) -> int:
        with self._failed.get_lock():
            self._failed.get_obj().value += 1
            return int(self._failed.get_obj().value)

    def check(self) -> None:
        if self._cancelled.value:
            raise Cancelled

    def cancel(self) -> None:
        self._cancelled.value = 1

    def show(self, task: Task) -> None:
        done = self._done.get_obj().value
        if done > self._shown:
            task.advance(done - self._shown)
            self._shown = done


_meter: _SharedMeter  # set once in each worker process by `_start_worker`


def _start_worker(meter: _SharedMeter) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    global _meter
    _meter = meter


def end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker process ends with its parent"
    parent.join()
    os._exit(1)


def _call(work: Callable[[Item, Meter], Result], item: Item) -> Result:
    _meter.check()
    try:
        return work(item, _meter)
    except UserError as error:
        raise UserError(str(error)) from None  # one of its subclasses need not survive the way to the parent


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Start processes to which the signal never comes: a mask is inherited. Ctrl-C is sent to them all, for one to act.

    What arrives here meanwhile is delivered at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
