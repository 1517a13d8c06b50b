"""What the report must say of the images themselves, read off the shards where they are still in reach."""

from __future__ import annotations

from typing import Any

from fedscale.config import Config, overlaid
from fedscale.errors import UserError


def image_suffix(config: dict[str, Any]) -> str | None:
    """`jpg`, `png`, … of the first test image in the run's shards; None where the shards are gone."""
    from fedscale.data.build import shard_folder
    from fedscale.data.manifest import Manifest
    from fedscale.data.shards import read_shard

    try:
        data = overlaid(Config(), {"data": config.get("data") or {}}).data
        manifest = Manifest.load(shard_folder(data))
        return next(sample.suffix for sample in read_shard(manifest.path(manifest.shards("test")[0])))
    except (UserError, OSError, IndexError, StopIteration):
        return None


def jpeg_note(config: dict[str, Any]) -> str:
    """That CIFAR came as JPEG, which is not how its original is kept; empty for anything else."""
    name = str((config.get("data") or {}).get("name", ""))
    if not name.lower().startswith("cifar") or image_suffix(config) not in ("jpg", "jpeg"):
        return ""
    return (
        "The images were taken from a JPEG copy of the data set, whose original is lossless: accuracies are those of "
        "“CIFAR (JPEG)”, somewhat below figures measured on the original."
    )
