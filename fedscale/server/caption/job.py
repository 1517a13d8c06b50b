"""One worker's captioning of one pool: each claimed shard is captioned and published, or recorded as failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.members import survey
from fedscale.data.near_duplicates import left_out
from fedscale.distributed.launch import Worker
from fedscale.errors import Stopped
from fedscale.progress import Task as Progress
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, sidecar
from fedscale.server.caption.engines import Engine, make_engine
from fedscale.server.caption.journal import Journal
from fedscale.server.caption.lease import Lease
from fedscale.server.caption.rows import TEXT_STATUSES, Row
from fedscale.server.caption.shard import ShardCaptioner, ShardError, Task
from fedscale.server.caption.work import Claim
from fedscale.session import Session
from fedscale.storage import Storage, is_remote

if TYPE_CHECKING:
    from fedscale.server.caption.features import FeatureStore


class CaptionJob:
    """One worker's captioning of one pool under one config."""

    def __init__(self, config: Config, run: RunFolder, session: Session, manifest: Manifest) -> None:
        self._config, self._session, self._manifest = config, session, manifest
        self.where, self.made_by = sidecar.storage(config, run), sidecar.settings(config)
        # Journals, leases and lists need a file system; beside an object store they lie in the run folder.
        self.scratch = run.stage("caption") if is_remote(self.where.url) else Path(self.where.url)
        self._shards = sidecar.selected(config, manifest)
        self._left_out = left_out(manifest)
        self._words = frozenset(manifest.class_names)
        self._engine: Engine | None = None
        self._captioner: ShardCaptioner | None = None
        self._features = _feature_store(config, self.where)

    def scan(self) -> list[ledger.Entry]:
        return ledger.scan(self.where, self._shards, self.made_by)

    def is_open(self, entry: ledger.Entry, retry_failed: bool = False) -> bool:
        """Whether there is something to do in a shard."""
        if entry.state == "failed":
            return retry_failed or entry.marker["attempts"] < self._config.caption.max_attempts
        if entry.state == "done":
            again = retry_failed and entry.marker["n_ok"] < entry.marker["n_in"]
            return again or (self._features is not None and not self._features.holds(entry))
        return True

    def work(self, images: int, claims: Iterator[Claim], worker: Worker, retry_failed: bool) -> None:
        """Caption the claimed shards, `images` in all at most. Raises what captioning a shard raises."""
        who = f"caption (worker {worker.rank} of {worker.world})" if worker.world > 1 else "caption"
        try:
            with self._session.reporter.task(who, images, "images") as progress:
                for shard, lease in claims:
                    with lease as held:
                        entry = ledger.look(self.where, shard, self.made_by)  # as it is now, in these hands
                        again = retry_failed and entry.marker.get("n_ok") != entry.marker.get("n_in")
                        if entry.state != "done" or again:
                            self._attempt(entry, held, progress, retry_failed)
                        self._embed(shard)
        finally:
            if self._engine is not None:
                self._engine.close()

    def _attempt(self, entry: ledger.Entry, lease: Lease | None, progress: Progress, retry_failed: bool) -> None:
        """Caption one shard, or record that it failed."""
        shard = entry.shard
        path = self.scratch / f"{shard.stem}.part.jsonl"
        try:
            with Journal(path, {**self.made_by, "input": shard.sha256 or shard.index}) as journal:
                try:
                    self._caption(entry, journal, lease, progress, retry_failed)
                except ShardError as error:
                    most = self._config.caption.max_attempts
                    hopeless = journal.begun > most
                    self._fail(shard, str(error), most if hopeless else 1 + entry.marker.get("attempts", 0))
                    journal.remove()
        except BlockingIOError:
            self._session.reporter.say(f"caption: {shard.file} is being captioned by another worker")

    def _caption(
        self, entry: ledger.Entry, journal: Journal, lease: Lease | None, progress: Progress, retry_failed: bool
    ) -> None:
        shard, settings = entry.shard, self._config.caption
        earlier = self._reopened(entry, journal) if entry.state == "done" and retry_failed else {}
        journal.begin()
        if journal.begun > settings.max_attempts and not retry_failed:
            raise ShardError(
                f"{settings.max_attempts} workers died in it, one after another, without finishing a group"
            )
        self._walk(shard)
        progress.advance(len(journal.rows))
        duplicates = self._left_out.get(shard.file, frozenset())
        task = Task(shard, self._manifest.url(shard), duplicates, earlier)

        def interrupted() -> str:
            if self._session.stop_requested:
                return f"caption: stopped in {shard.file}; finished shards and rows are kept"
            if lease is not None and not lease.held():
                return "lost"
            return ""

        try:
            done = self._ready(progress).caption(task, journal, interrupted)
        except Stopped as stopped:
            journal.stop()
            if str(stopped) != "lost":
                raise
            self._session.reporter.say(f"caption: {shard.file} was taken over by another worker")
            return
        sidecar.publish(self.where, shard, done.rows, self.made_by, self._words, done.sha256, done.seconds)
        self.where.delete(sidecar.failed_name(shard))
        journal.remove()

    def _walk(self, shard: ShardInfo) -> None:
        """Raises ShardError for a shard on a disk whose headers tell that it is broken, before the engine is asked."""
        url = self._manifest.url(shard)
        if is_remote(url):
            return  # its headers cannot be had without its data: reading it tells the same in the end
        found = survey(url)
        if isinstance(found, str):
            raise ShardError(found)
        if (found.bytes, found.samples) != (shard.bytes, shard.samples) or (shard.index and found.index != shard.index):
            raise ShardError(
                f"holds {found.samples} samples in {found.bytes:,} bytes, not the manifest's {shard.samples} in "
                f"{shard.bytes:,}"
            )

    def _embed(self, shard: ShardInfo) -> None:
        """Store the teacher's embeddings of a captioned shard, where the config asks for them and they are missing."""
        if self._features is None:
            return
        entry = ledger.look(self.where, shard, self.made_by)
        if entry.state != "done" or self._features.holds(entry):
            return
        self._features.store(entry, self._manifest.url(shard), sidecar.read(self.where, shard, entry.marker))

    def _reopened(self, entry: ledger.Entry, journal: Journal) -> dict[str, Row]:
        """The rows to try again of a finished shard; the others go to the journal, and then the marker goes."""
        rows = sidecar.read(self.where, entry.shard, entry.marker)
        again = [row for row in rows if row.status != "ok" and not self._exhausted(row)]
        tried = {row.key for row in again}
        journal.keep([row for row in rows if row.key not in tried])
        self.where.delete(sidecar.marker_name(entry.shard))
        return {row.key: row for row in again}

    def _exhausted(self, row: Row) -> bool:
        """Whether a text was tried `caption.max_attempts` times over already."""
        most = self._config.caption.max_attempts * (1 + len(self._config.caption.retry_temperatures))
        return row.status in TEXT_STATUSES and max(row.attempts.values(), default=0) >= most

    def _fail(self, shard: ShardInfo, reason: str, attempts: int) -> None:
        self._session.reporter.say(f"caption: {self._manifest.url(shard)}: failed ({reason})")
        marker = {
            "reason": reason,
            "attempts": attempts,
            "input": shard.file,
            "input_bytes": shard.bytes,
            "input_sha256": shard.sha256,
            "fingerprint": files.fingerprint(self.made_by),
        }
        self.where.publish(sidecar.failed_name(shard), (json.dumps(marker, sort_keys=True) + "\n").encode("ascii"))

    def _ready(self, progress: Progress) -> ShardCaptioner:
        """Made when the first shard needs it: where everything is done no weights are loaded."""
        if self._captioner is None:
            self._engine = make_engine(self._config)
            self._captioner = ShardCaptioner(self._config.caption, self._engine, progress.advance)
        return self._captioner


def _feature_store(config: Config, where: Storage) -> FeatureStore | None:
    if not config.caption.features.enabled:
        return None
    from fedscale.server.caption.features import FeatureStore  # open_clip, only where it is wanted

    return FeatureStore(config, where)
