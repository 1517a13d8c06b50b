"""Caption the open pool, shard by shard, as one of any number of workers. Finished shards are never touched again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.manifest import ShardInfo
from fedscale.data.open_pool import open_pool
from fedscale.distributed.launch import Worker, this_worker
from fedscale.errors import UserError
from fedscale.lease import Leases
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, sidecar, work
from fedscale.server.caption.job import CaptionJob
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
    job = CaptionJob(config, run, session, manifest, retry_failed)
    shards, pending = _begin(config, job, session)
    if pending:
        if worker.gaps:
            session.reporter.say(
                "caption: the job array has gaps; the shares of its missing tasks stay pending, unless you use "
                "--array=0-N, or caption.leases=true"
            )
        job.work(*_claims(config, job, shards, pending, worker, retry_failed), worker)
    entries = job.scan()
    left = sum(entry.state in ("pending", "stale") for entry in entries)
    if left:
        session.reporter.say(f"caption: this worker is done; {left} of {len(entries)} shards are left to others")
        return None
    if retry_failed and worker.world > 1:  # the others may be at it still, and nothing tells
        session.reporter.say(
            "caption: this worker is done; once all are, `fedscale caption` brings the summary up to date"
        )
        return None
    bare = sum(entry.state == "done" and not job.embedded(entry) for entry in entries)
    if bare and worker.world > 1:
        session.reporter.say(f"caption: {bare} of {len(entries)} shards have no embeddings yet; others may be at it")
        return None
    if bare:
        raise UserError(f"caption: {bare} of {len(entries)} shards cannot be embedded; copy them again and run again")
    work.tidy(job.scratch, {entry.shard.stem for entry in entries if entry.state == "done"})
    ledger.refuse_failures(config, job.where, entries)
    return summarise(config, job.where, entries, session)


def _begin(config: Config, job: CaptionJob, session: Session) -> tuple[list[ShardInfo], list[ShardInfo]]:
    """(all shards, those with something to do). Raises UserError for another config's captions."""
    entries = job.scan()
    if not config.caption.overwrite:
        ledger.refuse_stale(job.where, entries, job.made_by)
    pending = [entry.shard for entry in entries if job.is_open(entry)]
    done = len(entries) - len(pending) - sum(entry.state == "failed" and not job.is_open(entry) for entry in entries)
    if pending and done:
        session.reporter.say(f"caption: {done} of {len(entries)} shards are done already")
    if pending:
        sidecar.declare(job.where, job.made_by)
    return [entry.shard for entry in entries], pending


def _claims(
    config: Config,
    job: CaptionJob,
    shards: list[ShardInfo],
    pending: list[ShardInfo],
    worker: Worker,
    retry_failed: bool,
) -> tuple[int, Iterator[work.Claim]]:
    """(how many images there are at most, the shards with their leases) for this worker."""
    if config.caption.leases:
        if is_remote(job.where.url):
            raise UserError(
                f"caption.leases=true needs a folder that all workers share; caption.dir={job.where.url} is none"
            )
        leases = Leases(job.scratch, config.caption.heartbeat)
        claims = work.by_lease(leases, pending, worker, lambda shard: job.is_open(job.look(shard)))
        return sum(shard.samples for shard in pending), claims
    if is_remote(job.where.url):  # then the workers may share no folder in which to agree on a list
        worker = dataclasses.replace(worker, launch=None)
    what = f"{files.fingerprint(job.made_by)}{' again' if retry_failed else ''}"
    mine = work.by_rank(job.scratch, shards, pending, worker, what)
    return sum(shard.samples for shard in mine), work.unclaimed(mine)
