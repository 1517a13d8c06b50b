"""The captioned images that can be learnt from, still encoded, with their rows and perhaps stored embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedscale.config.schema import Config
from fedscale.data.keywords import KeywordClasses
from fedscale.data.manifest import Manifest
from fedscale.data.near_duplicates import left_out
from fedscale.data.shards import Sample
from fedscale.server.caption import sidecar
from fedscale.server.caption.features import FeatureStore
from fedscale.server.caption.join import joined
from fedscale.server.caption.ledger import Captions, Entry
from fedscale.server.caption.rows import STATUSES, Row


@dataclass(frozen=True)
class Example:
    """One captioned image of a shard, with the class that its keyword names, or None.

    `seen` [views, D] and `read` [D] are the teacher's stored embeddings, if any.
    """

    shard: str
    sample: Sample
    row: Row
    label: int | None = None
    seen: Tensor | None = None
    read: Tensor | None = None


class Examples:
    """The images of all captioned shards whose row is `ok` and that are no near-duplicate; `counts` them by shard.

    With `pretrain.objective=keyword` those alone whose keyword is one of the classes; `num_usable` counts the others
    too.
    """

    def __init__(self, config: Config, manifest: Manifest, captions: Captions, class_names: Sequence[str]) -> None:
        self.entries = list(captions)
        self._captions, self._manifest, self._left_out = captions, manifest, left_out(manifest)
        self._labelled, self._class_of = config.pretrain.objective == "keyword", KeywordClasses(class_names)
        self.num_usable = 0
        stored = config.pretrain.teacher == "stored" and not self._labelled
        self._features = FeatureStore(config, captions.where) if stored else None
        self.counts = [self._count(entry) for entry in self.entries]

    @property
    def skipped(self) -> str:
        """How many rows are left out, by status; near-duplicates found after captioning are among the `ok` ones."""
        totals = {s: sum(entry.marker["statuses"].get(s, 0) for entry in self.entries) for s in STATUSES}
        totals["near_duplicate"] += totals.pop("ok") - self.num_usable
        totals["without a class as keyword"] = self.num_usable - sum(self.counts)
        return ", ".join(f"{number} {status}" for status, number in totals.items() if number)

    def embed_dim(self) -> int:
        """D of the stored embeddings. Raises UserError where there are none."""
        assert self._features is not None, "asked only where the teacher is stored"
        return self._features.read(self.entries[0]).embeddings.shape[-1]

    def read(self, shard: int, first: int = 0, last: int | None = None) -> Iterator[Example]:
        """Examples `first` to before `last` of a shard; behind `last` nothing is read.

        Raises UserError for a shard, rows or embeddings that are not those that were captioned.
        """
        entry = self.entries[shard]
        file, left_out = entry.shard.file, self._left_out.get(entry.shard.file, frozenset())
        stored = self._features.read(entry) if self._features else None
        passed, wanted = 0, self.counts[shard] if last is None else last
        for index, (sample, row) in enumerate(joined(self._captions, self._manifest, entry)):
            if not self._usable(row, left_out):
                continue
            passed += 1
            if passed > first and stored is None:
                yield Example(file, sample, row, self._class_of(row.keyword))
            elif passed > first and stored is not None:
                yield Example(file, sample, row, None, stored.embeddings[index], stored.descriptions[index])
            if passed == wanted < self.counts[shard]:
                return
        assert passed == wanted, f"{file}: {passed} usable rows, its marker promised {wanted}"

    def _usable(self, row: Row, left_out: frozenset[str]) -> bool:
        labelled = not self._labelled or self._class_of(row.keyword) is not None
        return row.status == "ok" and row.key not in left_out and labelled

    def _count(self, entry: Entry) -> int:
        """How many rows can be used; near-duplicates may have been found after captioning."""
        left_out = self._left_out.get(entry.shard.file, frozenset())
        if not left_out and not self._labelled:
            self.num_usable += entry.marker["n_ok"]
            return entry.marker["n_ok"]
        rows = sidecar.read(self._captions.where, entry.shard, entry.marker)
        self.num_usable += sum(row.status == "ok" and row.key not in left_out for row in rows)
        return sum(self._usable(row, left_out) for row in rows)
