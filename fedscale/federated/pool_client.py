"""The open pool as one more client: the control row that gives FedAvg the server's images, with the crawl's labels."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest
from fedscale.data.near_duplicates import left_out
from fedscale.data.open_pool import open_pool, selected_shards
from fedscale.data.partition import Partition
from fedscale.data.store import ClientStore, open_store
from fedscale.errors import UserError
from fedscale.federated.pool import keyword_labels
from fedscale.progress import Reporter

BLOCK = 1024  # images copied at once


def open_pool_images(config: Config, reporter: Reporter) -> tuple[Manifest, ClientStore]:
    """The pool and its decoded images, built where absent."""
    manifest = open_pool(config.data, reporter)
    return manifest, open_store(manifest, "pool", config.data.image_size, reporter, config.data.max_corrupt)


def with_pool_client(
    config: Config, train: ClientStore, partition: Partition, pool: Manifest, images: ClientStore, scratch: Path
) -> tuple[ClientStore, Partition]:
    """The clients' images with the pool's behind them, and the partition with the pool as its last client.

    The pool's are those that captioning would take (`caption.max_images`, no near-duplicates) whose keyword names a
    class, which is their label. Both are laid into one array, on the disk of `scratch` as long as it is in use. Raises
    UserError when no image has such a keyword.
    """
    labels = keyword_labels(images, train.class_names)
    taken = sum(shard.samples for shard in selected_shards(pool, config.caption.max_images))
    hidden = {key for keys in left_out(pool).values() for key in keys}
    rows = np.array([r for r in np.flatnonzero(labels[:taken] >= 0) if images.keys[r] not in hidden], dtype=np.int64)
    if not len(rows):
        raise UserError(
            f"data.partition.pool_client=true: none of the pool's {len(images.keys)} images has a class as its keyword "
            f"({', '.join(train.class_names[:3])}, …); set it to false, or use a pool crawled by class names"
        )
    own = len(train.keys)
    joined = dataclasses.replace(
        train,
        images=_joined(train.images, images.images, rows, scratch),
        labels=np.concatenate([train.labels, labels[rows]]),
        keys=[*train.keys, *(f"pool/{images.keys[row]}" for row in rows)],
        keywords=[*train.keywords, *(images.keywords[row] for row in rows)],
        # Names these very images: CLIP's view of them, which the experiment keeps, is found by it.
        split=f"{train.split}+pool-{files.fingerprint([pool.fingerprint, rows.tolist()])}",
    )
    told = f"client {len(partition.clients)} is the open pool: {len(rows)} images, labelled by their keywords"
    one_more = np.arange(own, own + len(rows), dtype=np.int64)
    return joined, dataclasses.replace(
        partition,
        clients=(*partition.clients, one_more),
        note=f"{partition.note}; {told}" if partition.note else told,
        num_samples=own + len(rows),
    )


def _joined(first: np.ndarray, second: np.ndarray, rows: np.ndarray, scratch: Path) -> np.memmap:
    """`first` and these rows of `second` as one array, in a file without a name, which goes when nobody maps it."""
    shape = (len(first) + len(rows), *first.shape[1:])
    try:
        files.make_folder(scratch)
        with tempfile.TemporaryFile(dir=scratch) as file:
            # On the disk before it is written through the map: a full one would end the process (SIGBUS).
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * first.dtype.itemsize)
            joined = np.memmap(file, dtype=first.dtype, mode="w+", shape=shape)
    except OSError as error:
        raise files.unwritable(scratch, error) from error
    for start in range(0, len(first), BLOCK):
        part = first[start : start + BLOCK]
        joined[start : start + len(part)] = part
    for start in range(0, len(rows), BLOCK):
        chosen = rows[start : start + BLOCK]
        joined[len(first) + start : len(first) + start + len(chosen)] = second[chosen]
    return joined
