"""The pool that the server captions: an imported one, or the one that the data's own recipe set aside."""

from __future__ import annotations

from fedscale.config.schema import DataConfig
from fedscale.data.build import ensure_shards
from fedscale.data.manifest import Manifest
from fedscale.progress import Reporter


def open_pool(data: DataConfig, reporter: Reporter) -> Manifest:
    """The manifest of `data.pool`, else that of the run's own shards, built where absent. Raises UserError like both.

    An imported pool has no class names: its keywords are the crawl's words, whatever they are.
    """
    return Manifest.load(data.pool) if data.pool else ensure_shards(data, reporter)
