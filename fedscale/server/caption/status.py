"""How far captioning is, for `fedscale caption CONFIG --status`: read from the folder alone, while workers work."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from fedscale.collector import collector_paused
from fedscale.config.schema import Config
from fedscale.data.build import shard_folder
from fedscale.data.manifest import Manifest
from fedscale.lease import Leases
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, sidecar
from fedscale.server.caption.rows import STATUSES
from fedscale.storage import is_remote

JOURNAL = ".part.jsonl"
STATES = ("done", "failed", "under way", "pending", "stale")
NAMED = 20  # failed shards in the table; --json has all


@collector_paused()
def status(config: Config, run: RunFolder) -> dict[str, Any]:
    """Shards by state, rows by status, failed shards with reasons, who holds what. Raises UserError without shards."""
    manifest = Manifest.load(config.data.pool or shard_folder(config.data))  # nothing is built for a look
    where, made_by = sidecar.storage(config, run), sidecar.settings(config)
    entries = ledger.scan(where, sidecar.selected(config, manifest), made_by)
    scratch = run.stage("caption") if is_remote(where.url) else Path(where.url)
    beside = os.listdir(scratch) if scratch.is_dir() else []  # no glob: there may be 200,000 names
    under_way = {name.removesuffix(JOURNAL) for name in beside if name.endswith(JOURNAL)}
    shards = dict.fromkeys(STATES, 0)
    for entry in entries:
        begun = entry.state == "pending" and entry.shard.stem in under_way
        shards["under way" if begun else entry.state] += 1
    markers = [entry.marker for entry in entries if entry.state == "done"]
    seconds = sum(sum(marker["seconds"].values()) for marker in markers)
    images = sum(marker["n_in"] for marker in markers)
    rows: Counter[str] = Counter()
    for marker in markers:
        rows.update(marker["statuses"])
    return {
        "folder": where.url,
        "shards": {"all": len(entries), **shards},
        "images": {"all": sum(entry.shard.samples for entry in entries), "done": images},
        "rows": {name: rows[name] for name in STATUSES},
        "tokens": sum(marker["tokens"] for marker in markers),
        "images_per_worker_second": round(images / seconds, 3) if seconds else None,
        "failed": {
            entry.shard.file: {name: entry.marker[name] for name in ("reason", "attempts")}
            for entry in entries
            if entry.state == "failed"
        },
        "leases": Leases(scratch, config.caption.heartbeat).owners(beside),
    }


def shown(found: dict[str, Any]) -> RenderableType:
    """The status as tables for a terminal."""
    total = max(1, found["shards"]["all"])
    states = Table("shards", "number", "share", box=None, title=f"captions in {found['folder']}", title_justify="left")
    for name in STATES:
        states.add_row(name, f"{found['shards'][name]:,}", f"{100 * found['shards'][name] / total:.1f}%")
    rows = Table("rows of the finished shards", "number", box=None)
    for name, number in found["rows"].items():
        if number or name == "ok":
            rows.add_row(name, f"{number:,}")
    parts: list[RenderableType] = [states, "", rows]
    if found["failed"]:
        failed = Table("failed shard", "attempts", "reason", box=None)
        for name, why in list(found["failed"].items())[:NAMED]:
            failed.add_row(name, str(why["attempts"]), why["reason"])
        parts += ["", failed]
    if found["leases"]:
        held = Table("lease", "worker", box=None)
        for name, owner in found["leases"].items():
            held.add_row(name, owner)
        parts += ["", held]
    return Group(*parts)
