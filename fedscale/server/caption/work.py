"""Which shards this worker captions: its share of what was pending at the launch, or what it can claim by leases.

Neither uses a collective or a service: any number of workers, from any launcher, may come, die and come again. The
unit of work is the shard, never the rank (PITFALLS B 18), so another number of workers next time changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from fedscale import files
from fedscale.data.manifest import ShardInfo
from fedscale.distributed.launch import Worker
from fedscale.lease import Lease, Leases

Claim = tuple[ShardInfo, AbstractContextManager[Lease | None]]


def by_rank(
    folder: Path, shards: Sequence[ShardInfo], pending: Sequence[ShardInfo], worker: Worker, what: str = ""
) -> list[ShardInfo]:
    """`pending[rank::world]` of a list that all workers of the launch agree on.

    A worker that starts late finds less pending than the first did: sliced anew, that list would leave shards to
    nobody. So the first worker publishes its list under the launch's name and the others read it. Where a launch has no
    name, every worker takes its slice of all shards and leaves out what is done: nothing is left over either, but the
    shares may be uneven. `what` tells apart the work of two commands of one launch.
    """
    if worker.world == 1:
        return list(pending)
    if worker.launch is None:
        mine = {shard.file for shard in shards[worker.rank :: worker.world]}
        return [shard for shard in pending if shard.file in mine]
    name = f".pending-{worker.launch}-{files.fingerprint([worker.world, what])[:8]}.json"
    listed = _agreed(folder / name, [shard.file for shard in pending])
    mine = set(listed[worker.rank :: worker.world])
    return [shard for shard in shards if shard.file in mine]


def tidy(folder: Path, done: set[str]) -> None:
    """Remove the lists of all launches, and what dead workers left of shards (stems) that are done: leases, journals.

    For the one that finds nothing left to do. The lease of a shard that is not done may be alive.
    """
    left = ("*.lease", ".*.lease.*", ".*.part.*.jsonl")
    for path in (*folder.glob(".pending-*"), *(path for pattern in left for path in folder.glob(pattern))):
        if path.name.startswith(".pending-") or re.split(r"\.lease|\.part", path.name.lstrip("."))[0] in done:
            with suppress(OSError):
                path.unlink()


def by_lease(
    leases: Leases, pending: Sequence[ShardInfo], worker: Worker, is_open: Callable[[ShardInfo], bool]
) -> Iterator[Claim]:
    """Shards with their leases, claimed one after another; ends when all others are done or alive in other hands.

    Workers start at different places, so that they seldom meet. `is_open` tells whether there is something to do in a
    shard now. Leases whose owner died are taken over.
    """
    begin = worker.rank * len(pending) // worker.world
    waiting = [*pending[begin:], *pending[:begin]]
    while waiting:
        held: list[ShardInfo] = []
        for shard in waiting:
            if not is_open(shard):
                continue
            lease = leases.claim(shard.stem)
            if lease is None:
                held.append(shard)
            else:
                yield shard, lease
        held = [shard for shard in held if is_open(shard)]
        revived = set(leases.revive([shard.stem for shard in held])) if held else set()
        waiting = [shard for shard in held if shard.stem in revived]


def unclaimed(shards: Sequence[ShardInfo]) -> Iterator[Claim]:
    """Shards that need no lease."""
    for shard in shards:
        yield shard, nullcontext()


def _agreed(path: Path, mine: list[str]) -> list[str]:
    """The list under `path`: this one if no other worker was quicker. Written whole, then linked: one wins."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        files.make_folder(path.parent)
        temporary.write_text(json.dumps(mine), encoding="utf-8")
        with suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise files.unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return files.read_json(path)
