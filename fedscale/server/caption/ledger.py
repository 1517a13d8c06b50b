"""What has become of each shard so far, read from the sidecar folder in one pass: a listing and the markers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedscale import files
from fedscale.collector import collector_paused
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.errors import UserError
from fedscale.runs import RunFolder
from fedscale.server.caption import sidecar
from fedscale.storage import Storage, is_remote

REMOTE_READERS = 32  # markers of an object store read at once
PARSED = 1000  # markers parsed at once
NAMED = 5  # failed shards in an error line


@dataclass(frozen=True)
class Entry:
    """One shard's state: `done` and `failed` carry their marker; `stale` is another config's or of other bytes."""

    shard: ShardInfo
    state: str  # done, failed, stale or pending
    marker: dict[str, Any] = field(default_factory=dict)


@collector_paused()
def scan(where: Storage, shards: Sequence[ShardInfo], made_by: dict[str, Any]) -> list[Entry]:
    """The state of every shard, in their order."""
    listing = where.listing()
    fingerprint = files.fingerprint(made_by)
    names = [sidecar.marker_name(shard) for shard in shards]
    names = [name if name in listing else sidecar.failed_name(shard) for name, shard in zip(names, shards, strict=True)]
    found = _read_all(where, [name for name in names if name in listing])
    for marker in found.values():
        if marker is not None:
            marker.pop("unreadable", None)  # of 100,000 shards, a gigabyte of keys
    return [
        _entry(shard, name, found.get(name), listing, fingerprint) for shard, name in zip(shards, names, strict=True)
    ]


def look(where: Storage, shard: ShardInfo, made_by: dict[str, Any]) -> Entry:
    """One shard's state at this moment, without listing the folder: another worker may have finished it meanwhile."""
    for name in (sidecar.marker_name(shard), sidecar.failed_name(shard)):
        if text := _read(where, name):
            sizes = {} if (size := where.size(sidecar.rows_name(shard))) is None else {sidecar.rows_name(shard): size}
            return _entry(shard, name, _parsed([text])[0], sizes, files.fingerprint(made_by))
    return Entry(shard, "pending")


def _entry(
    shard: ShardInfo, name: str, found: dict[str, Any] | None, listing: dict[str, int], fingerprint: str
) -> Entry:
    """What a shard's marker, or else its failed marker, under `name`, says of it."""
    if found is None:
        return Entry(shard, "pending")
    current = found["fingerprint"] == fingerprint and _same_input(shard, found)
    if name == sidecar.failed_name(shard):
        return Entry(shard, "failed", found) if current else Entry(shard, "pending")
    if not current:
        return Entry(shard, "stale", found)
    whole = listing.get(sidecar.rows_name(shard)) == found["output_bytes"]
    return Entry(shard, "done", found) if whole else Entry(shard, "pending")


def _read_all(where: Storage, names: list[str]) -> dict[str, dict[str, Any] | None]:
    """Markers by name."""
    found: dict[str, dict[str, Any] | None] = {}
    with ThreadPoolExecutor(REMOTE_READERS if is_remote(where.url) else 1) as pool:
        for start in range(0, len(names), PARSED):
            batch = names[start : start + PARSED]
            mapped = pool.map if is_remote(where.url) else map
            found.update(zip(batch, _parsed(list(mapped(partial(_read, where), batch))), strict=True))
    return found


def _read(where: Storage, name: str) -> bytes:
    """A marker's text; empty for one that was taken away since the folder was listed."""
    try:
        return where.read(name)
    except FileNotFoundError:
        return b""


def _parsed(texts: list[bytes]) -> list[dict[str, Any] | None]:
    """Markers; None for one that is cut short or no marker at all.

    Parsed as one list: then all share the strings of their keys, which halves the time.
    """
    try:
        values = json.loads(b"[" + b",".join(texts) + b"]")
    except ValueError:
        values = []
    if len(values) != len(texts):
        values = [_value(text) for text in texts]
    return [value if isinstance(value, dict) and "fingerprint" in value else None for value in values]


def _value(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _same_input(shard: ShardInfo, marker: dict[str, Any]) -> bool:
    if shard.sha256 and marker.get("input_sha256"):
        return marker["input_sha256"] == shard.sha256
    if shard.index and marker.get("input_index"):
        return marker["input_index"] == shard.index
    return marker.get("input_bytes") == shard.bytes


def refuse_stale(where: Storage, entries: Sequence[Entry], made_by: dict[str, Any]) -> None:
    """Raises UserError naming the keys that differ when the folder holds another config's captions of these shards."""
    stale = next((entry for entry in entries if entry.state == "stale"), None)
    if stale is None:
        return
    old_fingerprint = stale.marker["fingerprint"]
    if old_fingerprint == files.fingerprint(made_by):
        differing = ["of other images: this shard's bytes differ"]
    else:
        old = _read_settings(where, old_fingerprint)
        keys = [key for key in sorted({*old, *made_by}) if old.get(key) != made_by.get(key)]
        differing = [f"{key} was {old.get(key)}, is {made_by.get(key)}" for key in keys]
    count = sum(entry.state == "stale" for entry in entries)
    raise UserError(
        f"{where.url}/{sidecar.marker_name(stale.shard)}: {count} shards have captions of another config "
        f"({'; '.join(differing[:3])}); choose another caption.dir= or name=, or caption them anew with "
        "caption.overwrite=true"
    )


def _read_settings(where: Storage, fingerprint: str) -> dict[str, Any]:
    try:
        return json.loads(where.read(sidecar.settings_name(fingerprint)))
    except (FileNotFoundError, ValueError):
        return {"fingerprint": fingerprint}


def refuse_failures(config: Config, where: Storage, entries: Sequence[Entry]) -> None:
    """Raises UserError when more shards failed than `caption.max_failed_shards` allows, naming them with reasons."""
    failed = [entry for entry in entries if entry.state == "failed"]
    if len(failed) > config.caption.max_failed_shards * len(entries):
        named = "; ".join(f"{entry.shard.file}: {entry.marker['reason']}" for entry in failed[:NAMED])
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise UserError(
            f"{where.url}: {len(failed)} of {len(entries)} shards failed ({named}{more}); copy them again and run with "
            f"--retry-failed, or allow a share of them with caption.max_failed_shards={_share(failed, entries)}"
        )


def _share(failed: Sequence[Entry], entries: Sequence[Entry]) -> float:
    return min(0.999, math.ceil(1000 * len(failed) / len(entries)) / 1000)


def captioned(config: Config, manifest: Manifest, run: RunFolder) -> Captions:
    """The captions of the selected shards. Raises UserError when one is neither captioned nor given up."""
    where, made_by = sidecar.storage(config, run), sidecar.settings(config)
    entries = scan(where, sidecar.selected(config, manifest), made_by)
    refuse_stale(where, entries, made_by)
    for entry in entries:
        if entry.state == "pending":
            name = sidecar.rows_name(entry.shard)
            raise UserError(f"{where.url}/{name}: not captioned; run `fedscale caption` with this config first")
    refuse_failures(config, where, entries)
    return Captions(where, [entry for entry in entries if entry.state == "done"])


@dataclass(frozen=True)
class Captions:
    """All captioned shards of a pool, for the stages that read them."""

    where: Storage
    entries: list[Entry]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def total(self, count: str) -> int:
        """A count of the markers (`n_in`, `n_ok`, `tokens`), over all shards."""
        return sum(entry.marker[count] for entry in self.entries)
