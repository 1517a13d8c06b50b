"""Caption the open pool, shard by shard, as one of any number of workers. Finished shards are never touched again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedscale.config.schema import Config
from fedscale.data.manifest import ShardInfo
from fedscale.data.open_pool import open_pool
from fedscale.distributed.launch import Worker, this_worker
from fedscale.errors import UserError
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, sidecar, work
from fedscale.server.caption.job import CaptionJob
from fedscale.server.caption.lease import Leases
from fedscale.server.caption.summary import summarise
from fedscale.session import Session
from fedscale.storage import is_remote


def run(config: Config, run: RunFolder, session: Session, retry_failed: bool = False) -> dict[str, Any] | None:
    """Caption this worker's share of the pool; returns counts over all shards, or None while others still work.

    With `retry_failed`, failed shards and rows that are not `ok` are tried again. Raises UserError for captions of
    another config, more failed shards or unreadable images than the config allows, and a broken engine; Stopped after a
    signal, with finished rows kept.
    """
    worker = this_worker()
    manifest = open_pool(config.data, session.reporter)
    job = CaptionJob(config, run, session, manifest)
    entries = job.scan()
    if not config.caption.overwrite:
        ledger.refuse_stale(job.where, entries, job.made_by)
    pending = [entry.shard for entry in entries if job.is_open(entry, retry_failed)]
    shards = [entry.shard for entry in entries]
    if len(pending) < len(shards):
        session.reporter.say(f"caption: {len(shards) - len(pending)} of {len(shards)} shards are done already")
    if pending:
        sidecar.declare(job.where, job.made_by)
        job.work(*_claims(config, job, shards, pending, worker), worker, retry_failed)
    entries = job.scan()
    left = sum(entry.state != "failed" and job.is_open(entry) for entry in entries)
    if left:
        session.reporter.say(f"caption: this worker is done; {left} of {len(entries)} shards are left to others")
        return None
    work.tidy(job.scratch)
    ledger.refuse_failures(config, job.where, entries)
    return summarise(config, entries, session)


def _claims(
    config: Config, job: CaptionJob, shards: list[ShardInfo], pending: list[ShardInfo], worker: Worker
) -> tuple[int, Iterator[work.Claim]]:
    """(how many images there are at most, the shards with their leases) for this worker."""
    if config.caption.leases:
        if is_remote(job.where.url):
            raise UserError(
                f"caption.leases=true needs a folder that all workers share; caption.dir={job.where.url} is none"
            )

        def open_still() -> set[str]:
            return {entry.shard.file for entry in job.scan() if job.is_open(entry)}

        leases = Leases(job.scratch, config.caption.heartbeat)
        return sum(shard.samples for shard in pending), work.by_lease(leases, pending, worker, open_still)
    mine = work.by_rank(job.scratch, shards, pending, worker)
    return sum(shard.samples for shard in mine), work.unclaimed(mine)
