"""Sidecars: what a captioned shard leaves, `NNNNN.jsonl` and then `NNNNN.done.json`, named after the input shard.

One row per input key, in input order. A shard is captioned if and only if its marker says so: made by the same
settings, from the same input bytes, and rows of the recorded size are there. Anything else is done again, except
another config's result, which is refused (PITFALLS G 1 to 3). The settings that a fingerprint stands for lie once in
`settings-FINGERPRINT.json`, so that a marker stays small: there may be a hundred thousand of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedscale import files
from fedscale.config import to_dict
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.open_pool import selected_shards
from fedscale.errors import UserError
from fedscale.runs import RunFolder
from fedscale.server.caption.rows import STATUSES, Row, from_json
from fedscale.storage import Storage, storage_at

SCHEMA = 2  # of rows and markers


def storage(config: Config, run: RunFolder) -> Storage:
    """Where the sidecars lie: `caption.dir` (a folder or URL), else the run folder."""
    return storage_at(config.caption.dir or str(run.stage("caption")))


def selected(config: Config, manifest: Manifest) -> list[ShardInfo]:
    """The pool shards to caption: whole shards, in order, until they hold `caption.max_images`.

    Raises UserError when the data has no open pool.
    """
    return selected_shards(manifest, config.caption.max_images)


def settings(config: Config) -> dict[str, Any]:
    """Every setting that determines a row, by its dotted key; how many images are captioned, and where, is none."""
    caption = config.caption
    names = ["engine", "kinds", "seed", "max_pixels"]
    result: dict[str, Any] = {"schema": SCHEMA}
    if caption.engine != "template":
        names += ["use_keyword", "max_new_tokens", "temperature", "retry_temperatures"]
        prompts = to_dict(caption.prompts)
        asked = [*caption.kinds, "hint"] if caption.use_keyword else caption.kinds
        result |= {f"caption.prompts.{name}": prompts[name] for name in asked}
        if caption.engine == "openai":
            result |= {f"caption.openai.{name}": getattr(caption.openai, name) for name in ("base_url", "model")}
        else:
            mllm = config.teachers.mllm
            result |= {f"teachers.mllm.{name}": getattr(mllm, name) for name in ("model", "revision", "dtype")}
    values = to_dict(caption)
    return result | {f"caption.{name}": values[name] for name in names}


def publish(
    where: Storage,
    shard: ShardInfo,
    rows: Sequence[Row],
    made_by: dict[str, Any],
    words: frozenset[str],
    sha256: str,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Publish the rows, then the marker, each whole or absent; returns the marker.

    `words` are the class names, `sha256` that of the input as it was read, `seconds` the time spent by stage.
    """
    text = "".join(row.line() for row in rows).encode("ascii")
    began = time.perf_counter()
    where.publish(rows_name(shard), text)
    seconds = {**seconds, "write": time.perf_counter() - began}
    statuses = Counter(row.status for row in rows)
    named = [row.names(words) for row in rows]
    marker = {
        "n_in": len(rows),
        "n_ok": statuses["ok"],
        "statuses": {status: statuses[status] for status in STATUSES if statuses[status]},
        "n_comparable": sum(name is not None for name in named),
        "n_named": sum(name is True for name in named),
        "unreadable": [row.key for row in rows if row.status in ("decode_error", "too_large")],
        "tokens": sum(sum(row.tokens.values()) for row in rows),
        "input": shard.file,
        "input_bytes": shard.bytes,
        "input_sha256": sha256,
        "input_index": shard.index,
        "output_bytes": len(text),
        "output_sha256": hashlib.sha256(text).hexdigest(),
        "fingerprint": files.fingerprint(made_by),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }
    where.publish(marker_name(shard), (json.dumps(marker, sort_keys=True) + "\n").encode("ascii"))
    return marker


def declare(where: Storage, made_by: dict[str, Any]) -> None:
    """Publish what the fingerprint of these settings stands for, before any marker names it."""
    name = settings_name(files.fingerprint(made_by))
    if name not in where.listing():
        where.publish(name, (json.dumps(made_by, indent=1, sort_keys=True) + "\n").encode())


def read(where: Storage, shard: ShardInfo, marker: dict[str, Any]) -> list[Row]:
    """The shard's rows in input order. Raises UserError where they are not those that the marker recorded."""
    name = rows_name(shard)
    place = f"{where.url}/{name}"
    try:
        text = where.read(name)
    except FileNotFoundError:
        raise UserError(f"{place}: is missing; run `fedscale caption` again") from None
    if hashlib.sha256(text).hexdigest() != marker["output_sha256"]:
        raise UserError(f"{place}: altered since it was captioned; delete it and run `fedscale caption` again")
    return [from_json(json.loads(line), place) for line in text.decode("ascii").splitlines()]


def rows_name(shard: ShardInfo) -> str:
    return f"{shard.stem}.jsonl"


def marker_name(shard: ShardInfo) -> str:
    return f"{shard.stem}.done.json"


def failed_name(shard: ShardInfo) -> str:
    return f"{shard.stem}.failed.json"


def settings_name(fingerprint: str) -> str:
    return f"settings-{fingerprint}.json"
