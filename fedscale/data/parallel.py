"""A look at many shards: by processes where Python computes, by threads where it waits for a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from fedscale.data.workers import Meter, cores, in_processes
from fedscale.progress import Task
from fedscale.storage import is_remote

THREADS = 16  # streams from an object store at once
FEW = 8  # shards that one process has walked before others have started

R = TypeVar("R")


def mapped(look: Callable[[str], R], urls: Sequence[str], jobs: int | None, task: Task) -> Iterator[R]:
    """`look(url)` of each shard in their order, `jobs` at a time; None = as many as is best, 1 = in this process.

    `look` and what it returns must pickle. Threads alone would slow local work down, which holds the interpreter all
    but the microsecond that a header takes to read.
    """
    remote = any(map(is_remote, urls))
    if jobs is None:
        jobs = THREADS if remote else cores() if len(urls) > FEW else 1
    if remote and jobs > 1:
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(look, urls)
        return
    with closing(
        in_processes(functools.partial(_unmetered, look), urls, max(1, min(jobs, len(urls))), task)
    ) as results:
        yield from results


def _unmetered(look: Callable[[str], R], url: str, meter: Meter) -> R:
    return look(url)
