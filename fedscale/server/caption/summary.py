"""The captioning stage's summary: counts over all shards, held against the limits of the config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from fedscale.config.schema import Config
from fedscale.errors import UserError
from fedscale.server.caption import sidecar
from fedscale.server.caption.ledger import Entry
from fedscale.server.caption.rows import STATUSES
from fedscale.session import Session
from fedscale.storage import Storage

NAMED = 5  # unreadable images on the screen,
LISTED = 1000  # and in the summary; the markers name all
WITH_MODEL = ("hf", "vllm")


def summarise(config: Config, where: Storage, entries: Sequence[Entry], session: Session) -> dict[str, Any]:
    """Counts over all shards. Raises UserError when more images than `data.max_corrupt` cannot be read."""
    markers = [entry.marker for entry in entries if entry.state == "done"]
    statuses = {status: sum(marker["statuses"].get(status, 0) for marker in markers) for status in STATUSES}
    images = sum(marker["n_in"] for marker in markers)
    comparable = sum(marker["n_comparable"] for marker in markers)
    named = sum(marker["n_named"] for marker in markers)
    corrupt = statuses["decode_error"] + statuses["too_large"]
    unreadable = list(islice(_unreadable(where, entries), LISTED))
    if corrupt:
        shown = ", ".join(unreadable[:NAMED])
        line = f"caption: {corrupt} of {images} images cannot be decoded or are too large: {shown}"
        if corrupt > config.data.max_corrupt * images:
            raise UserError(f"{line}; data.max_corrupt={config.data.max_corrupt} allows fewer")
        session.reporter.say(line)
    if statuses["truncated"]:
        session.reporter.say(
            f"caption: {statuses['truncated']} of {images} images have a text cut at "
            f"caption.max_new_tokens={config.caption.max_new_tokens}; pretraining leaves them out"
        )
    others = {s: n for s, n in statuses.items() if n and s in ("repeated", "empty", "generation_error")}
    if others:
        listed = ", ".join(f"{number} {status}" for status, number in others.items())
        session.reporter.say(f"caption: {listed}; `fedscale caption … --retry-failed` tries them again")
    return {
        "engine": config.caption.engine,
        "model": model_of(config),
        "shards": len(markers),
        "failed_shards": [entry.shard.file for entry in entries if entry.state == "failed"],
        "images": images,
        **statuses,
        "unreadable": unreadable,
        "class_naming_accuracy": 100.0 * named / comparable if comparable else None,  # percent of the ok rows
        "tokens": sum(marker["tokens"] for marker in markers),
        "seconds_by_stage": {
            stage: round(sum(marker["seconds"].get(stage, 0.0) for marker in markers), 3)
            for stage in ("read", "generate", "write")
        },
    }


def _unreadable(where: Storage, entries: Sequence[Entry]) -> Iterator[str]:
    """SHARD:KEY of the images that could not be read, from the markers of shards that have some."""
    for entry in entries:
        if entry.state == "done" and any(entry.marker["statuses"].get(s) for s in ("decode_error", "too_large")):
            for key in json.loads(where.read(sidecar.marker_name(entry.shard)))["unreadable"]:
                yield f"{entry.shard.file}:{key}"


def model_of(config: Config) -> str | None:
    """The model that wrote the texts; None for `template`, which has none."""
    if config.caption.engine == "openai":
        return config.caption.openai.model
    return config.teachers.mllm.model if config.caption.engine in WITH_MODEL else None
