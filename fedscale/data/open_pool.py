"""The pool that the server captions: an imported one, or the one that the data's own recipe set aside."""

from __future__ import annotations

from fedscale.config.schema import DataConfig
from fedscale.data.build import ensure_shards
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.progress import Reporter


def open_pool(data: DataConfig, reporter: Reporter) -> Manifest:
    """The manifest of `data.pool`, else that of the run's own shards, built where absent. Raises UserError like both.

    An imported pool has no class names: its keywords are the crawl's words, whatever they are.
    """
    return Manifest.load(data.pool) if data.pool else ensure_shards(data, reporter)


def selected_shards(pool: Manifest, max_images: int) -> list[ShardInfo]:
    """The pool's shards that the server uses: whole ones, in order, until they hold `max_images`; all for 0.

    Raises UserError when the data has no open pool.
    """
    chosen: list[ShardInfo] = []
    images = 0
    for shard in pool.shards("pool"):
        if max_images and images >= max_images:
            break
        chosen.append(shard)
        images += shard.samples
    return chosen
