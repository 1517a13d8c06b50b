"""Caption the open pool shard by shard. Finished shards are never touched again; a shard cut short is done again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedscale.config.schema import Config
from fedscale.data.build import ensure_shards
from fedscale.data.images import CorruptImage, decode, threaded
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, file_sha256, read_shard
from fedscale.errors import Stopped, UserError
from fedscale.progress import Task
from fedscale.runs import RunFolder
from fedscale.server.caption import sidecar
from fedscale.server.caption.engines import Answer, Engine, Request, make_engine
from fedscale.server.caption.sidecar import Row
from fedscale.session import Session


def run(config: Config, run: RunFolder, session: Session) -> dict[str, Any]:
    """Caption the pool shards that are not captioned yet; returns counts over all of them.

    Raises UserError for captions of another config, a shard that is not as its manifest says, or more undecodable
    images than `data.max_corrupt` allows; Stopped after a signal, with the finished shards kept.
    """
    manifest = ensure_shards(config.data, session.reporter)
    shards = sidecar.selected(config, manifest)
    folder, made_by = sidecar.folder(config, run), sidecar.settings(config)
    markers = {shard.file: sidecar.marker(folder, shard, made_by) for shard in shards}
    pending = [shard for shard in shards if markers[shard.file] is None]
    if len(pending) < len(shards):
        session.reporter.say(f"caption: {len(shards) - len(pending)} of {len(shards)} shards are captioned already")
    if pending:
        for shard in pending:
            _check(manifest, shard)
        engine = make_engine(config)
        with session.reporter.task("caption", sum(shard.samples for shard in pending), "images") as task:
            for shard in pending:
                rows = _caption(config, manifest.path(shard), engine, session, task)
                markers[shard.file] = sidecar.publish(folder, shard, rows, made_by)
    return _summary(config, [found for found in markers.values() if found], session)


def _caption(config: Config, path: Path, engine: Engine, session: Session, task: Task) -> list[Row]:
    """The rows of one shard, in input order."""
    rows: dict[str, Row] = {}
    for batch in _batches(path, config.caption.batch_size):
        if session.stop_requested:
            raise Stopped(f"caption: stopped in {path}; finished shards are kept, this one will be done again")
        requests = []
        for sample, image in batch:
            if isinstance(image, str):
                rows[sample.key] = Row(sample.key, "decode_error", sample.keyword, error=image)
            else:
                rows[sample.key] = Row(sample.key, "empty", sample.keyword)  # holds the place of the answer
                requests.append(Request(sample.key, image, sample.keyword))
        for request, answers in zip(requests, engine.answer(requests), strict=True):
            rows[request.key] = _row(request, answers)
        task.advance(len(batch))
    return list(rows.values())


def _row(request: Request, answers: dict[str, Answer]) -> Row:
    status = "ok"
    if any(answer.finish != "stop" for answer in answers.values()):
        status = "truncated"
    if not all(answer.text for answer in answers.values()):
        status = "empty"
    return Row(
        request.key,
        status,
        request.keyword,
        texts={kind: answer.text for kind, answer in answers.items()},
        finish={kind: answer.finish for kind, answer in answers.items()},
        tokens={kind: answer.tokens for kind, answer in answers.items()},
    )


def _batches(path: Path, size: int) -> Iterator[list[tuple[Sample, Tensor | str]]]:
    """Samples with their images, or with why they have none; threads decode ahead."""
    decoded = threaded(_decoded, read_shard(path))
    while batch := list(islice(decoded, size)):
        yield batch


def _decoded(sample: Sample) -> Tensor | str:
    try:
        return torch.from_numpy(np.array(decode(sample.image).convert("RGB")))
    except CorruptImage as error:
        return str(error)


def _check(manifest: Manifest, shard: ShardInfo) -> None:
    """Raises UserError unless the shard's bytes are those that the manifest recorded."""
    found = file_sha256(manifest.path(shard))
    if found != shard.sha256:
        raise UserError(
            f"{manifest.path(shard)}: sha256 is {found[:12]}…, expected {shard.sha256[:12]}…; build the shards again"
        )


def _summary(config: Config, markers: list[dict[str, Any]], session: Session) -> dict[str, Any]:
    """Counts over all shards. Raises UserError when more images than `data.max_corrupt` could not be decoded."""
    statuses = {status: sum(marker["statuses"][status] for marker in markers) for status in sidecar.STATUSES}
    images = sum(marker["n_in"] for marker in markers)
    comparable = sum(marker["n_comparable"] for marker in markers)
    named = sum(marker["n_named"] for marker in markers)
    corrupt = [f"{marker['input']}:{key}" for marker in markers for key in marker["decode_errors"]]
    if corrupt:
        line = f"caption: {len(corrupt)} of {images} images cannot be decoded: {', '.join(corrupt[:5])}"
        if len(corrupt) > config.data.max_corrupt * images:
            raise UserError(f"{line}; data.max_corrupt={config.data.max_corrupt} allows fewer")
        session.reporter.say(line)
    if statuses["truncated"]:
        session.reporter.say(
            f"caption: {statuses['truncated']} of {images} images have a text cut at "
            f"caption.max_new_tokens={config.caption.max_new_tokens}; pretraining leaves them out"
        )
    return {
        "engine": config.caption.engine,
        "model": config.teachers.mllm.model if config.caption.engine == "hf" else None,
        "shards": len(markers),
        "images": images,
        **statuses,
        "decode_errors": corrupt,
        "class_naming_accuracy": 100.0 * named / comparable if comparable else None,  # percent of the ok rows
        "tokens": sum(marker["tokens"] for marker in markers),
    }
