"""The teacher's view of near-duplicates: a pool's stored embeddings held against those of test images."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
import torch
from safetensors.torch import load

from fedscale.config.schema import ClipConfig
from fedscale.data.images import CorruptImage, decode, fit_square
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.near_search import Embeddings
from fedscale.data.verify import checked_samples
from fedscale.errors import UserError
from fedscale.models.clip import load_clip
from fedscale.server.caption.features import data_name, marker_name
from fedscale.storage import Storage, storage_at

BATCH = 256


def embeddings_of(place: str, pool: Manifest, against: Manifest, split: str, similarity: float) -> Embeddings:
    """The criterion for `mark_near_duplicates`: the pool's embeddings stored in `place`, and a split's, made now.

    The teacher and the image size are those that the stored embeddings were made with. Raises UserError where none are
    stored, or several teachers' are.
    """
    if not 0 < similarity <= 1:
        raise UserError(f"--similarity {similarity}: expected a cosine above 0, at most 1")
    where = storage_at(place)
    markers = {shard.file: _marker(where, shard) for shard in pool.shards("pool")}
    made_by = {json.dumps(marker["settings"], sort_keys=True) for marker in markers.values() if marker}
    if len(made_by) != 1:
        raise UserError(
            f"{place}: embeddings of {len(made_by)} teachers or settings for this pool, expected those of one; run "
            "`fedscale caption` with caption.features.enabled=true"
        )
    settings = json.loads(made_by.pop())

    def stored(shard: ShardInfo) -> np.ndarray | None:
        if markers[shard.file] is None:
            return None
        return load(where.read(data_name(shard)))["embeddings"][:, 0].float().numpy()

    return Embeddings(stored, _embedded(against, split, settings), similarity)


def _marker(where: Storage, shard: ShardInfo) -> dict[str, Any] | None:
    try:
        return json.loads(where.read(marker_name(shard)))
    except (FileNotFoundError, ValueError):
        return None


def _embedded(manifest: Manifest, split: str, settings: dict[str, Any]) -> np.ndarray:
    """float32 [images, D] of a split, in shard order; zeros for an image that does not decode."""
    clip, size = load_clip(ClipConfig(**settings["clip"])), settings["image_size"]
    result = np.zeros((manifest.num_samples(split), clip.embed_dim), np.float32)
    samples = enumerate(checked_samples(manifest, split))
    while batch := list(islice(samples, BATCH)):
        images, rows = [], []
        for row, sample in batch:
            try:
                images.append(torch.from_numpy(np.array(fit_square(decode(sample.image), size))))
                rows.append(row)
            except CorruptImage:
                continue
        if images:
            result[rows] = clip.encode_images(torch.stack(images)).numpy()
    return result
