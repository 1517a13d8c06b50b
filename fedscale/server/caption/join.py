"""Images and their caption rows together: read in step, or written as tars for trainers that know no sidecars."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.folders import published_folder
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.near_duplicates import left_out
from fedscale.data.shards import KEY, Sample, read_shard, write_shard
from fedscale.errors import Stopped, UserError
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, sidecar
from fedscale.server.caption.ledger import Captions, Entry
from fedscale.server.caption.rows import Row
from fedscale.session import Session


def joined(captions: Captions, manifest: Manifest, entry: Entry) -> Iterator[tuple[Sample, Row]]:
    """Every sample of a shard with its row, whatever the row's status. Raises UserError where they do not match."""
    url = manifest.url(entry.shard)
    rows = iter(sidecar.read(captions.where, entry.shard, entry.marker))
    for sample in read_shard(url):
        row = next(rows, None)
        if row is None or row.key != sample.key:
            has = "no" if row is None else f"{row.key}'s"
            raise UserError(f"{url}: image {sample.key} has {has} captions; run `fedscale caption` again")
        yield sample, row
    if (row := next(rows, None)) is not None:
        raise UserError(f"{url}: has no image {row.key}, yet it is captioned; run `fedscale caption` again")


def join_shards(config: Config, manifest: Manifest, run: RunFolder, out: Path, session: Session) -> dict[str, Any]:
    """Write a training tar for each captioned shard: KEY.jpg, KEY.txt (all texts), KEY.json with LLaVA's conversations.

    Rows that are not `ok` are left out and counted; returns the counts. Equal captions give equal bytes. Raises
    UserError when a shard is not captioned or `out` is taken; Stopped after a signal, with nothing left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is taken; choose another folder for the joined shards, or delete it")
    captions = ledger.captioned(config, manifest, run)
    excluded = left_out(manifest)
    statuses: Counter[str] = Counter()
    infos = []
    with (
        published_folder(out) as folder,
        session.reporter.task("join", captions.total("n_in"), "images") as task,
    ):
        for entry in captions:
            if session.stop_requested:
                raise Stopped(f"join: stopped before {entry.shard.file}; nothing is written to {out}")
            samples = _training(joined(captions, manifest, entry), excluded.get(entry.shard.file), statuses)
            done = write_shard(folder / "train" / f"{entry.shard.stem}.tar", samples)
            file = f"train/{entry.shard.stem}.tar"
            infos.append(ShardInfo(file, done.samples, done.bytes, done.sha256, {}, done.members, done.index))
            task.advance(entry.marker["n_in"])
        made_by = sidecar.settings(config)
        Manifest(
            root=folder,
            name=f"{manifest.name} with captions",
            class_names=(),
            fingerprint=files.fingerprint([made_by, *(entry.marker["output_sha256"] for entry in captions)]),
            splits={"pool": tuple(infos)},
            recipe={"format": "join", "pool": manifest.fingerprint, "captions": made_by},
        ).save()
    return {"shards": len(infos), "images": sum(info.samples for info in infos), "left_out": dict(statuses)}


def _training(
    pairs: Iterator[tuple[Sample, Row]], excluded: frozenset[str] | None, statuses: Counter[str]
) -> Iterator[Sample]:
    for sample, row in pairs:
        status = "near_duplicate" if excluded and row.key in excluded else row.status
        if status != "ok":
            statuses[status] += 1
            continue
        yield Sample(
            _key(sample.key),
            sample.image,
            sample.suffix,
            keyword=row.keyword,
            caption="\n".join(row.text(kind) for kind in row.texts),
            source=sample.source,
            facts={"conversations": {kind: _conversation(row, kind) for kind in row.texts}},
        )


def _key(key: str) -> str:
    """A key as our own shards may hold it: a foreign one with folders or other letters keeps its hash."""
    if KEY.fullmatch(key):
        return key
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', key)[-60:]}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"


def _conversation(row: Row, kind: str) -> list[dict[str, str]]:
    """The turns of one kind in LLaVA's form, the image's place before the first question."""
    spoken = []
    for turn, (question, answer) in enumerate(row.turns(kind)):
        spoken.append({"from": "human", "value": question if turn else f"<image>\n{question}"})
        spoken.append({"from": "gpt", "value": answer})
    return spoken
