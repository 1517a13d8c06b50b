"""The manifest of a shard folder: which shards there are, what each holds, and which recipe they were made by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.collector import collector_paused
from fedscale.errors import UserError
from fedscale.storage import PIPE, is_remote

FILE = "manifest.json"
SPLITS = ("train", "pool", "validation", "test")


@dataclass(frozen=True)
class ShardInfo:
    """One tar: its path below the manifest's base, images, bytes, SHA-256 ("" = not hashed), images by class name.

    A shard of the pool has no labels; there the histogram counts the crawl's keywords, and is empty where the pool was
    imported. `members` counts the tar's members by extension; `index` is a short hash of their names and places.
    """

    file: str
    samples: int
    bytes: int
    sha256: str
    histogram: dict[str, int]
    members: dict[str, int] = field(default_factory=dict)  # {} in a manifest of an older version
    index: str = ""  # "" likewise

    @property
    def stem(self) -> str:
        """The tar's name without folder and `.tar`, after which all its sidecars are named."""
        return self.file.rpartition("/")[2].rpartition(".")[0]  # no Path: asked of 100,000 shards at a time


@dataclass(frozen=True)
class Manifest:
    """All shards of a data set. `class_names` are in label order, the head of the long tail first.

    `base` is the folder or URL below which the shards lie, None where that is the manifest's own folder. In a command,
    `{}` stands for the file: `pipe:aws s3 cp s3://pool/{} -`.
    """

    root: Path
    name: str
    class_names: tuple[str, ...]
    fingerprint: str
    splits: dict[str, tuple[ShardInfo, ...]]
    recipe: dict[str, Any]
    excluded: list[dict[str, str]] = field(default_factory=list)  # corrupt originals or shards: name, reason
    base: str | None = None
    near_duplicates: dict[str, Any] = field(default_factory=dict)  # of, method, threshold, count, scanned

    @classmethod
    @collector_paused()
    def load(cls, root: Path | str) -> Manifest:
        """Read `root/manifest.json`. Raises UserError where it is missing or malformed."""
        root = Path(root)
        path = root / FILE
        if not path.exists():
            raise UserError(f"{root}: no shards ({FILE} is missing); run `fedscale shards build RECIPE --out {root}`")
        tree = files.read_json(path)
        try:
            held = {split: tree["splits"][split] for split in SPLITS if split in tree["splits"]}
            splits = {split: tuple(ShardInfo(**shard) for shard in shards) for split, shards in held.items()}
            manifest = cls(
                root=root,
                name=tree["name"],
                class_names=tuple(tree["class_names"]),
                fingerprint=tree["fingerprint"],
                splits=splits,
                recipe=tree["recipe"],
                excluded=tree["excluded"],
                base=tree.get("base"),
                near_duplicates=tree.get("near_duplicates", {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a manifest ({error}); delete {root} and build the shards again") from None
        for shards in splits.values():
            for shard in shards:
                # By its words alone: asking the file system about each of 100,000 shards takes minutes.
                if shard.file.startswith("/") or "://" in shard.file or ".." in shard.file.split("/"):
                    expected = f"expected shards below {manifest.base or root}"
                    raise UserError(f"{path}: {shard.file} lies outside the folder; {expected}")
        return manifest

    def save(self) -> None:
        """Write `root/manifest.json` atomically."""
        tree = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.name != "root"}
        tree["splits"] = {split: [dataclasses.asdict(shard) for shard in held] for split, held in self.splits.items()}
        files.write_json(self.root / FILE, tree)

    def shards(self, split: str) -> list[ShardInfo]:
        """The split's shards in order. Raises UserError where the data set has no such split."""
        if not self.splits.get(split):
            held = ", ".join(name for name in self.splits if self.splits[name])
            raise UserError(f"{self.root}: has no {split} images, only {held}; {_remedy(split)}")
        return list(self.splits[split])

    def url(self, shard: ShardInfo) -> str:
        """Where a shard lies, as `fedscale.storage.open_read` takes it: a path, an object's URL or a command."""
        if self.base is None:
            return str(self.root / shard.file)
        if self.base.startswith(PIPE):
            return self.base.replace("{}", shard.file)
        return f"{self.base.rstrip('/')}/{shard.file}"

    def path(self, shard: ShardInfo) -> Path:
        """Where a shard lies on a disk; ask for `url` where the shards may be elsewhere."""
        assert self.base is None or not is_remote(self.base), f"{self.base} is no folder"
        return Path(self.url(shard))

    def num_samples(self, split: str) -> int:
        """Images of a split; 0 for one that is absent."""
        return sum(shard.samples for shard in self.splits.get(split, ()))

    def class_counts(self, split: str) -> list[int]:
        """Images a class in class order (pool: by keyword)."""
        shards = self.splits.get(split, ())
        return [sum(shard.histogram.get(name, 0) for shard in shards) for name in self.class_names]


def _remedy(split: str) -> str:
    if split in ("pool", "validation"):
        return "build shards with open_pool.enabled=true and open_pool.reserve, open_pool.validation above 0"
    return f"build shards from a source with {split} images"
