"""One worker's captioning of one pool: each claimed shard is captioned and published, or recorded as failed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.members import survey
from fedscale.data.near_duplicates import left_out
from fedscale.data.tar import BrokenShard
from fedscale.distributed.launch import Worker
from fedscale.errors import Stopped, UserError
from fedscale.lease import Lease
from fedscale.progress import Task as Progress
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, sidecar
from fedscale.server.caption.engines import Engine, make_engine
from fedscale.server.caption.journal import Journal
from fedscale.server.caption.rows import BAD_TEXTS, Row
from fedscale.server.caption.shard import ShardCaptioner, ShardError, Task
from fedscale.server.caption.work import Claim
from fedscale.session import Session
from fedscale.storage import Storage, Unreadable, is_remote

if TYPE_CHECKING:
    from fedscale.server.caption.features import FeatureStore

LOST = "lost"  # the reason to stop of a worker whose lease another one took over


class CaptionJob:
    """One worker's captioning of one pool under one config. With `retry_failed`, what failed before is open again."""

    def __init__(
        self, config: Config, run: RunFolder, session: Session, manifest: Manifest, retry_failed: bool = False
    ) -> None:
        self._config, self._session, self._manifest, self._retry = config, session, manifest, retry_failed
        self.where, self.made_by = sidecar.storage(config, run), sidecar.settings(config)
        # Journals, leases and lists need a file system; beside an object store they lie in the run folder.
        self.scratch = run.stage("caption") if is_remote(self.where.url) else Path(self.where.url)
        self._shards = sidecar.selected(config, manifest)
        self._left_out = left_out(manifest)
        self._words = frozenset(manifest.class_names)
        self._engine: Engine | None = None
        self._captioner: ShardCaptioner | None = None
        self._features = _feature_store(config, self.where)
        self._failed_before: dict[str, int] = {}  # attempts, by shard, as this worker first saw them

    def scan(self) -> list[ledger.Entry]:
        """The state of all shards."""
        entries = ledger.scan(self.where, self._shards, self.made_by)
        for entry in entries:
            if entry.state == "failed":
                self._failed_before.setdefault(entry.shard.file, entry.marker["attempts"])
        return entries

    def look(self, shard: ShardInfo) -> ledger.Entry:
        """The state of one shard now."""
        return ledger.look(self.where, shard, self.made_by)

    def is_open(self, entry: ledger.Entry) -> bool:
        """Whether there is something to do in a shard, and no other worker of this launch tried it in vain."""
        if entry.state == "failed":
            attempts = entry.marker["attempts"]
            first = attempts <= self._failed_before.get(entry.shard.file, 0)
            return first and (self._retry or attempts < self._config.caption.max_attempts)
        if entry.state == "done":
            return self._to_retry(entry) or not self.embedded(entry)
        return True

    def embedded(self, entry: ledger.Entry) -> bool:
        """Whether the teacher's embeddings of a captioned shard are stored, where the config asks for them."""
        return self._features is None or self._features.holds(entry)

    def work(self, images: int, claims: Iterator[Claim], worker: Worker) -> None:
        """Caption the claimed shards, `images` in all at most. Raises what captioning a shard raises."""
        who = f"caption (worker {worker.rank} of {worker.world})" if worker.world > 1 else "caption"
        try:
            with self._session.reporter.task(who, images, "images") as progress:
                for shard, lease in claims:
                    with lease as held:
                        if self._session.stop_requested:
                            raise Stopped(f"caption: stopped before {shard.file}; finished shards are kept")
                        entry = self.look(shard)  # as it is now, in these hands
                        if self.is_open(entry) and (entry.state != "done" or self._to_retry(entry)):
                            self._attempt(entry, held, progress)
                        self._embed(shard)
        finally:
            if self._engine is not None:
                self._engine.close()

    def _to_retry(self, entry: ledger.Entry) -> bool:
        statuses = entry.marker["statuses"]
        return self._retry and any(statuses.get(status) for status in BAD_TEXTS)

    def _attempt(self, entry: ledger.Entry, lease: Lease | None, progress: Progress) -> None:
        """Caption one shard, or record that it failed."""
        shard = entry.shard
        path, made_by = self._journal(shard), {**self.made_by, "input": shard.sha256 or shard.index}
        with ExitStack() as stack:
            try:
                journal = stack.enter_context(Journal(path, made_by))
            except BlockingIOError:
                if lease is None or not self.is_open(self.look(shard)):
                    self._session.reporter.say(f"caption: {shard.file} is being captioned by another worker")
                    return
                # Who has it open let the lease go stale: it is frozen. The shard is captioned anew, beside it.
                aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
                journal = stack.enter_context(Journal(aside, made_by))
            try:
                self._caption(entry, journal, lease, progress)
            except ShardError as error:
                self._give_up(entry, error, journal)
            except UserError:  # a wrong key, a broken engine: no fault of the shard's
                journal.stop()
                raise

    def _caption(self, entry: ledger.Entry, journal: Journal, lease: Lease | None, progress: Progress) -> None:
        shard, settings = entry.shard, self._config.caption
        self._walk(shard)
        captioner = self._ready(progress)
        earlier = self._reopened(entry, journal) if entry.state == "done" else {}
        if entry.state == "done" and not earlier:
            return
        journal.begin()
        if journal.begun > settings.max_attempts and not self._retry:
            raise ShardError(
                f"{settings.max_attempts} workers died in it, one after another, without finishing a group"
            )
        progress.advance(len(journal.rows))
        duplicates = self._left_out.get(shard.file, frozenset())
        task = Task(shard, self._manifest.url(shard), duplicates, earlier)

        def interrupted() -> str:
            if self._session.stop_requested:
                return f"caption: stopped in {shard.file}; finished shards and rows are kept"
            return LOST if lease is not None and lease.lost() else ""

        try:
            done = captioner.caption(task, journal, interrupted)
        except Stopped as stopped:
            journal.stop()
            if str(stopped) != LOST:
                raise
            self._session.reporter.say(f"caption: {shard.file} was taken over by another worker")
            return
        sidecar.publish(self.where, shard, done.rows, self.made_by, self._words, done.sha256, done.seconds)
        self.where.delete(sidecar.failed_name(shard))
        journal.remove()
        self._journal(shard).unlink(missing_ok=True)  # a frozen worker's, if it was not the same

    def _journal(self, shard: ShardInfo) -> Path:
        return self.scratch / f"{shard.stem}.part.jsonl"

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
        entry = self.look(shard)
        if entry.state != "done" or self._features.holds(entry):
            return
        url = self._manifest.url(shard)
        try:
            rows = sidecar.read(self.where, shard, entry.marker)
            self._features.store(entry, url, rows, self._session)
        except (BrokenShard, Unreadable) as error:
            self._session.reporter.say(f"caption: {url}: cannot be embedded ({error})")

    def _reopened(self, entry: ledger.Entry, journal: Journal) -> dict[str, Row]:
        """The rows to try again of a finished shard; the others go to the journal.

        The sidecar stands until its successor is published: a retry that is cut short loses nothing, and is continued.
        """
        rows = sidecar.read(self.where, entry.shard, entry.marker)
        again = {row.key: row for row in rows if row.status in BAD_TEXTS and not self._exhausted(row)}
        journal.forget([key for key, row in journal.rows.items() if key in again and _tries(row) <= _tries(again[key])])
        if again:
            journal.add([row for row in rows if row.key not in again and row.key not in journal.rows])
        return again

    def _exhausted(self, row: Row) -> bool:
        """Whether a text was tried `caption.max_attempts` times over already."""
        most = self._config.caption.max_attempts * (1 + len(self._config.caption.retry_temperatures))
        return _tries(row) >= most

    def _give_up(self, entry: ledger.Entry, error: ShardError, journal: Journal) -> None:
        """Record that a shard failed; one that was captioned before keeps its captions."""
        shard, most = entry.shard, self._config.caption.max_attempts
        if entry.state == "done":
            say = f"cannot be tried again ({error}); its captions stay as they are"
            self._session.reporter.say(f"caption: {self._manifest.url(shard)}: {say}")
            return
        self._session.reporter.say(f"caption: {self._manifest.url(shard)}: failed ({error})")
        marker = {
            "reason": str(error),
            "attempts": most if journal.begun > most else 1 + entry.marker.get("attempts", 0),
            "input": shard.file,
            "input_bytes": shard.bytes,
            "input_sha256": shard.sha256,
            "input_index": shard.index,
            "fingerprint": files.fingerprint(self.made_by),
        }
        self.where.publish(sidecar.failed_name(shard), (json.dumps(marker, sort_keys=True) + "\n").encode("ascii"))
        if error.unread:  # the rows that are there were read from a shard that may well be whole
            journal.stop()
        else:
            journal.remove()

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


def _tries(row: Row) -> int:
    return max(row.attempts.values(), default=0)
