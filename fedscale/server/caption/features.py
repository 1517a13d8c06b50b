"""Stored embeddings of the frozen CLIP, so that pretraining need not run it (MobileCLIP's idea, arXiv 2311.17049).

`NNNNN.clip.safetensors` holds fp16 `embeddings` [samples, views, D] in shard order and `descriptions` [samples, D];
rows of images that are not `ok` are zero. View 0 is the image itself, view v is augmented by a seed of (seed, key, v),
by which pretraining shows the student the very same view. `NNNNN.clip.done.json` comes last, like every marker.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedscale import files
from fedscale.config import to_dict
from fedscale.config.schema import Config
from fedscale.data.augment import augment
from fedscale.data.images import decode, fit_square
from fedscale.data.manifest import ShardInfo
from fedscale.data.shards import read_shard
from fedscale.device import pick_device
from fedscale.errors import Stopped, UserError
from fedscale.models.clip import ClipTeacher, load_clip
from fedscale.rng import torch_generator
from fedscale.server.caption.ledger import Entry
from fedscale.server.caption.rows import Row
from fedscale.session import Session
from fedscale.storage import Storage


@dataclass(frozen=True)
class Stored:
    """One shard's embeddings: float16 [samples, views, D], and of the descriptions [samples, D]."""

    embeddings: Tensor
    descriptions: Tensor


def view_of(image: Tensor, view: int, kind: str, seed: int, key: str) -> Tensor:
    """View `view` of one image, uint8 [H, W, 3]: the image itself for 0, else augmented by (seed, key, view) alone."""
    if view == 0:
        return image
    return augment(image[None], kind, torch_generator(seed, "feature view", key, view))[0]


class FeatureStore:
    """The embeddings of one pool under one config, beside its captions."""

    def __init__(self, config: Config, where: Storage) -> None:
        self._config, self._where = config, where
        self._views, self._size = config.caption.features.views, config.data.image_size
        self._settings: dict[str, Any] = {
            "clip": to_dict(config.teachers.clip),
            "views": self._views,
            "image_size": self._size,
            "augment": config.pretrain.augment if self._views > 1 else "none",
            "seed": config.caption.seed,
        }
        self._clip: ClipTeacher | None = None

    def holds(self, entry: Entry) -> bool:
        """Whether a captioned shard's embeddings are stored: of these settings, bytes and captions."""
        try:
            marker = json.loads(self._where.read(marker_name(entry.shard)))
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(marker, dict) and all(
            marker.get(name) == value for name, value in self._made_of(entry).items()
        )

    def store(self, entry: Entry, url: str, rows: list[Row], session: Session) -> None:
        """Embed all `ok` images of a captioned shard and their descriptions, and publish them.

        Raises BrokenShard and Unreadable like the shard's reader, Stopped after a signal.
        """
        clip, size = self._teacher(), self._config.caption.features.batch_size
        embeddings = torch.zeros(len(rows), self._views, clip.embed_dim, dtype=torch.float16)
        descriptions = torch.zeros(len(rows), clip.embed_dim, dtype=torch.float16)
        pairs = ((i, s, r) for i, (s, r) in enumerate(zip(read_shard(url), rows, strict=True)) if r.status == "ok")
        while batch := list(islice(pairs, size)):
            if session.stop_requested:
                raise Stopped(f"caption: stopped while embedding {entry.shard.file}; it will be embedded again")
            where = torch.tensor([index for index, _, _ in batch])
            images = [torch.from_numpy(np.array(fit_square(decode(s.image), self._size))) for _, s, _ in batch]
            for view in range(self._views):
                seen = [
                    view_of(image, view, self._settings["augment"], self._settings["seed"], row.key)
                    for image, (_, _, row) in zip(images, batch, strict=True)
                ]
                embeddings[where, view] = clip.encode_images(torch.stack(seen)).cpu().half()
            texts = [row.text("description") for _, _, row in batch]
            descriptions[where] = clip.encode_texts(texts).cpu().half()
        data = save({"embeddings": embeddings, "descriptions": descriptions})
        self._where.publish(data_name(entry.shard), data)
        marker = {
            **self._made_of(entry),
            "settings": self._settings,
            "n_in": len(rows),
            "output_sha256": hashlib.sha256(data).hexdigest(),
        }
        self._where.publish(marker_name(entry.shard), (json.dumps(marker, sort_keys=True) + "\n").encode("ascii"))

    def read(self, entry: Entry) -> Stored:
        """A shard's embeddings. Raises UserError where they are absent, of other settings, or damaged."""
        place = f"{self._where.url}/{data_name(entry.shard)}"
        if not self.holds(entry):
            raise UserError(
                f"{place}: no embeddings of this config; run `fedscale caption` with caption.features.enabled=true, "
                "or use pretrain.teacher=live"
            )
        try:
            marker = json.loads(self._where.read(marker_name(entry.shard)))
            data = self._where.read(data_name(entry.shard))
            if hashlib.sha256(data).hexdigest() != marker["output_sha256"]:
                raise ValueError
            return Stored(**load(data))
        except (FileNotFoundError, ValueError, TypeError, SafetensorError):
            raise UserError(f"{place}: damaged; delete it and its marker and run `fedscale caption` again") from None

    def _made_of(self, entry: Entry) -> dict[str, Any]:
        return {
            "fingerprint": files.fingerprint(self._settings),
            "input_sha256": entry.marker["input_sha256"],
            "captions_sha256": entry.marker["output_sha256"],
        }

    def _teacher(self) -> ClipTeacher:
        if self._clip is None:
            self._clip = load_clip(self._config.teachers.clip, pick_device(self._config))
        return self._clip


def data_name(shard: ShardInfo) -> str:
    return f"{shard.stem}.clip.safetensors"


def marker_name(shard: ShardInfo) -> str:
    return f"{shard.stem}.clip.done.json"
