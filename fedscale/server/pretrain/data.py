"""The image-text pairs of pretraining: each rank reads its own streams of them, and resumes at any step.

`order` says which pair comes when, `examples` reads shards, `reader` streams, `batch` decodes, `loader` has workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest
from fedscale.errors import UserError
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger
from fedscale.server.pretrain.batch import Batch, BatchMaker, micro_batches
from fedscale.server.pretrain.examples import Examples
from fedscale.server.pretrain.loader import loaded
from fedscale.server.pretrain.order import Order, cuts, share
from fedscale.server.pretrain.reader import Reader

__all__ = ["Batch", "PairStream"]

KEPT_BYTES = 2**28  # of images, encoded and decoded, that a rank keeps in memory from one epoch to the next


class PairStream:
    """The pairs of all captioned shards, epoch after epoch without end.

    `num_pairs` counts those of an epoch, `num_skipped` the rows left out, `skipped` says why in words; `num_usable`
    counts also those that are left out for their keyword alone (`pretrain.objective=keyword`). Raises UserError when a
    shard is not captioned, no row can be used, or `pretrain.teacher=stored` finds no embeddings.

    A rank holds fewer than `pretrain.shuffle_buffer` pairs of each of its streams, encoded, with their texts: at most
    streams / ranks · shuffle_buffer · the size of a pair (8 · 256 · 110 kB = 225 MB of ImageNet's JPEGs on one rank).
    One that resumes reads again at most so many.
    """

    def __init__(self, config: Config, manifest: Manifest, run: RunFolder, class_names: Sequence[str] = ()) -> None:
        captions = ledger.captioned(config, manifest, run)
        self._examples = Examples(config, manifest, captions, class_names)
        self._streams, self._workers = config.pretrain.streams, config.pretrain.workers
        self._order = Order(self._examples.counts, config.seed, self._streams, config.pretrain.shuffle_buffer)
        maker = BatchMaker(config)
        self._reader = Reader(self._examples, self._order, maker, config.caption.kinds, config.seed, KEPT_BYTES)
        self.num_pairs = self._order.num_pairs
        self.num_skipped: int = captions.total("n_in") - self.num_pairs
        self.num_usable = self._examples.num_usable
        self.skipped = self._examples.skipped
        if self.num_usable and not self.num_pairs:
            raise UserError(
                f"pretrain.objective=keyword: none of {self.num_usable} captioned images has a class as its keyword "
                f"({', '.join(class_names[:3])}, …); use objective=distillation, or a pool crawled by class names"
            )
        if not self.num_pairs:
            raise UserError(
                f"{captions.where.url}: none of {self.num_skipped} images can be used ({self.skipped}); "
                f"truncated texts need a higher caption.max_new_tokens than {config.caption.max_new_tokens}"
            )

    @property
    def note(self) -> str:
        """What the user may want to know of how the shards are read; '' if nothing."""
        shards = len(self._examples.entries)
        if shards >= self._streams:
            return ""
        return f"{shards} shards for pretrain.streams={self._streams}: some are read by several streams, in parts"

    def embed_dim(self) -> int:
        """D of the stored embeddings. Raises UserError where there are none."""
        return self._examples.embed_dim()

    def position(self, step: int, size: int) -> dict[str, int]:
        """Where the data stands after `step` steps of `size` pairs: whole epochs, pairs of the next, pairs in all."""
        epoch, samples = divmod(step * size, self.num_pairs)
        return {"epoch": epoch, "samples": samples, "samples_seen": step * size}

    def batches(
        self, start: int, size: int, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[list[Batch]]:
        """This rank's part of each step from `start` on, as `accumulation` micro batches, without end.

        A step is `size` pairs over all ranks; neither ranks nor workers change which, nor which micro batch has them.
        Every rank has some in every micro batch. Raises UserError where streams are too few for ranks and workers;
        on the way, for a shard that is not what was captioned.
        """
        if world > self._streams:
            raise UserError(
                f"pretrain.streams={self._streams}: expected one or more for each of {world} ranks; "
                f"use pretrain.streams={world} or a multiple, or fewer ranks"
            )
        if self._workers > self._streams // world:  # the same on every rank, or the others would wait
            raise UserError(
                f"pretrain.workers={self._workers}: expected at most {self._streams // world}, one a stream "
                f"(pretrain.streams={self._streams} over {world} ranks); lower it, or raise pretrain.streams"
            )
        assert size >= self._streams * accumulation, "as the config makes sure"
        streams = share(range(self._streams), rank, world)
        steps = enumerate(loaded(self._reader, streams, start, size, self._workers), start)
        return (micro_batches(positions, batch, cuts(step, size, accumulation)) for step, (positions, batch) in steps)
