"""A rank's streams divided among worker processes, whose parts of each step are put together again.

Workers are spawned: a fork would copy the locks of this process's threads (NCCL's, an object store's) and its CUDA
context, and a fork server would die of the SIGTERM that Slurm sends to every process of a job. The workers themselves
hold such signals back: the rank ends them, after it has saved. Torch gives each worker one thread.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fedscale.errors import UserError
from fedscale.server.pretrain.batch import Batch, merged
from fedscale.server.pretrain.order import share
from fedscale.server.pretrain.reader import Reader

PREFETCH = 2  # steps that each worker is ahead
HELD_BACK = (signal.SIGINT, signal.SIGTERM)


def loaded(
    reader: Reader, streams: Sequence[int], start: int, size: int, workers: int
) -> Iterator[tuple[list[int], Batch]]:
    """`reader.steps` by so many workers, 0 = in this process; the same batches for any number of them.

    Raises UserError as the reader does, and where a worker is killed.
    """
    if not workers:
        yield from reader.steps(streams, start, size)
        return
    loader: DataLoader[Any] = DataLoader(
        _Share(reader, streams, start, size),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        multiprocessing_context="spawn",
        generator=torch.Generator(),  # of the workers' seeds, which nothing uses: the global one stays as it is
    )
    with _signals_held_back():  # a child inherits this, from before its first line of Python on
        parts: Any = iter(loader)
    end = parts._shutdown_workers  # which torch calls when nothing refers to `parts`: perhaps never, after an error
    atexit.register(end)  # before multiprocessing's own, which would wait for what a SIGTERM does not end
    try:
        while True:
            yield merged([_next(parts, workers) for _ in range(workers)])  # the loader takes them in turn
    finally:
        atexit.unregister(end)
        end()


class _Failed(str):
    """The line of a UserError, on its way out of a worker."""


class _Share(IterableDataset):
    """Worker w's part of each step: that of the streams w, w + n, … of the rank's."""

    def __init__(self, reader: Reader, streams: Sequence[int], start: int, size: int) -> None:
        self._reader, self._streams, self._start, self._size = reader, streams, start, size

    def __iter__(self) -> Iterator[tuple[list[int], Batch] | _Failed]:
        info = get_worker_info()
        assert info is not None, "runs in workers alone"
        streams = share(self._streams, info.id, info.num_workers)
        try:
            yield from self._reader.steps(streams, self._start, self._size, info.num_workers)
        except UserError as error:
            # Again and again, because torch would end a worker that has no more, and with it the tensors under way.
            yield from repeat(_Failed(error))


def _next(parts: Iterator[Any], workers: int) -> tuple[list[int], Batch]:
    try:
        part = next(parts)
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        bug = "in DataLoader worker process" in str(error)  # an exception of its own, with the traceback in the text
        if bug or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        raise UserError(
            f"pretrain.workers={workers}: a worker was killed, perhaps for want of memory or of room in /dev/shm; "
            "lower pretrain.workers, or 0 to read in the rank itself"
        ) from error
    if isinstance(part, _Failed):
        raise UserError(str(part))
    return part


@contextmanager
def _signals_held_back() -> Iterator[None]:
    resource_tracker.ensure_running()  # or multiprocessing starts it meanwhile, and then lets the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
