"""Sidecars: what a captioned shard leaves, `NNNNN.jsonl` and then `NNNNN.done.json`, named after the input shard.

One row per input key, in input order. A shard is captioned if and only if its marker says so: made by the same
settings, from the same input bytes, and the rows still have the hash that was recorded. Anything else is done again,
except another config's result, which is refused (PITFALLS G 1 to 3).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.errors import UserError
from fedscale.runs import RunFolder

STATUSES = ("ok", "decode_error", "truncated", "empty")


@dataclass(frozen=True)
class Row:
    """The texts of one image by kind, how each ended (`stop` or `length`) and how many tokens it took.

    `status` is one of STATUSES; only `ok` rows have a whole text of every kind.
    """

    key: str
    status: str
    keyword: str | None
    texts: dict[str, str] = field(default_factory=dict)
    finish: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    error: str = ""  # what a decode_error was

    @property
    def named(self) -> bool | None:
        """Whether the conversation names the crawl keyword; None where there is nothing to compare."""
        if self.status != "ok" or not self.keyword or "conversation" not in self.texts:
            return None
        word = re.escape(self.keyword.replace("_", " "))
        return re.search(rf"\b{word}(e?s)?\b", self.texts["conversation"], re.IGNORECASE) is not None


def folder(config: Config, run: RunFolder) -> Path:
    """Where the sidecars lie: `caption.dir`, else the run folder."""
    return Path(config.caption.dir) if config.caption.dir else run.stage("caption")


def selected(config: Config, manifest: Manifest) -> list[ShardInfo]:
    """The pool shards to caption: whole shards, in order, until they hold `caption.max_images`.

    Raises UserError when the data has no open pool.
    """
    chosen, images = [], 0
    for shard in manifest.shards("pool"):
        if config.caption.max_images and images >= config.caption.max_images:
            break
        chosen.append(shard)
        images += shard.samples
    return chosen


def settings(config: Config) -> dict[str, Any]:
    """Every setting that determines a row, by its dotted key. How many images are captioned is none of them."""
    caption = config.caption
    result: dict[str, Any] = {"caption.engine": caption.engine, "caption.kinds": list(caption.kinds)}
    if caption.engine == "template":
        return result
    mllm = config.teachers.mllm
    result |= {f"caption.prompts.{kind}": getattr(caption.prompts, kind) for kind in caption.kinds}
    result |= {"caption.max_new_tokens": caption.max_new_tokens, "caption.temperature": caption.temperature}
    result |= {f"teachers.mllm.{name}": getattr(mllm, name) for name in ("model", "revision", "dtype")}
    if caption.temperature > 0:  # draws are made batch by batch
        result |= {"caption.seed": caption.seed, "caption.batch_size": caption.batch_size}
    return result


def publish(folder: Path, shard: ShardInfo, rows: Sequence[Row], made_by: dict[str, Any]) -> dict[str, Any]:
    """Write the rows, then the marker, each atomically; returns the marker."""
    # ASCII, so that no reader takes U+2028 or U+0085 inside a text for the end of a line.
    text = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
    files.write_text(rows_path(folder, shard), text)
    statuses = Counter(row.status for row in rows)
    marker = {
        "n_in": len(rows),
        "n_ok": statuses["ok"],
        "statuses": {status: statuses[status] for status in STATUSES},
        "n_comparable": sum(row.named is not None for row in rows),
        "n_named": sum(row.named is True for row in rows),
        "decode_errors": [row.key for row in rows if row.status == "decode_error"],
        "tokens": sum(sum(row.tokens.values()) for row in rows),
        "input": shard.file,
        "input_sha256": shard.sha256,
        "output_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "fingerprint": files.fingerprint(made_by),
        "settings": made_by,
    }
    files.write_json(_marker_path(folder, shard), marker)
    return marker


def marker(folder: Path, shard: ShardInfo, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """The shard's marker, or None when it is not captioned (or not whole) yet.

    Raises UserError naming the keys that differ when the folder holds another config's captions of this shard.
    """
    path = _marker_path(folder, shard)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(found, dict) or "settings" not in found:
        return None
    old = {**found["settings"], "data (sha256 of the shard)": found.get("input_sha256")}
    new = {**made_by, "data (sha256 of the shard)": shard.sha256}
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if keys:
        differing = "; ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys[:3])
        raise UserError(
            f"{path}: captions of another config ({differing}); "
            "choose another caption.dir= or name=, or delete the folder"
        )
    rows = rows_path(folder, shard)
    if not rows.exists() or hashlib.sha256(rows.read_bytes()).hexdigest() != found["output_sha256"]:
        return None
    return found


def read(folder: Path, shard: ShardInfo) -> list[Row]:
    """The shard's rows in input order; a torn last line is dropped. Raises UserError for any other malformed line."""
    path = rows_path(folder, shard)
    rows = files.read_jsonl(path)
    try:
        return [Row(**row) for row in rows]
    except TypeError:
        raise UserError(f"{path}: not caption rows; delete it and run `fedscale caption` again") from None


def captioned(config: Config, manifest: Manifest, run: RunFolder) -> list[tuple[ShardInfo, dict[str, Any]]]:
    """The selected shards with their markers. Raises UserError when one is not captioned yet."""
    where, made_by = folder(config, run), settings(config)
    found = []
    for shard in selected(config, manifest):
        done = marker(where, shard, made_by)
        if done is None:
            raise UserError(f"{rows_path(where, shard)}: not captioned; run `fedscale caption` with this config first")
        found.append((shard, done))
    return found


def rows_path(folder: Path, shard: ShardInfo) -> Path:
    return folder / f"{Path(shard.file).stem}.jsonl"


def _marker_path(folder: Path, shard: ShardInfo) -> Path:
    return folder / f"{Path(shard.file).stem}.done.json"
