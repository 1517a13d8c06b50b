"""The client store: a split's images decoded once into memory-mapped uint8, so that a client is a list of rows."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedscale import files
from fedscale.data.folders import published_folder
from fedscale.data.images import CorruptImage, decode, fit_square, threaded
from fedscale.data.manifest import Manifest
from fedscale.data.shards import Sample
from fedscale.data.verify import checked_samples
from fedscale.errors import UserError
from fedscale.progress import Reporter

LAYOUT = 1  # of the store; raised when equal shards decode to other bytes
NO_LABEL = -1  # the label of every image of the pool


@dataclass(frozen=True)
class ClientStore:
    """One split in memory-mapped form; row i of each member is the i-th image in shard order.

    `images` is copy-on-write: what is written to it never reaches the file. `excluded` names what did not decode.
    """

    images: np.memmap  # uint8 [N, H, W, 3] RGB
    labels: np.ndarray  # int64 [N]; −1 in the pool
    keys: list[str]  # [N], unique within the split
    keywords: list[str | None]  # [N]; the crawl's search word (pool alone)
    class_names: tuple[str, ...]
    split: str
    excluded: list[dict[str, str]]  # key, reason


def open_store(manifest: Manifest, split: str, image_size: int, reporter: Reporter, max_corrupt: float) -> ClientStore:
    """Open `<shards>/store/<split>-<image_size>/`, building it where absent or made from other shards.

    Images of another size are resized (bicubic) on the shorter side and cut to the centre square. Corrupt ones are left
    out, counted and named, up to a share `max_corrupt` of the split. Raises UserError above it, for shards that differ
    from the manifest, for a split that the data set has not got, and (pool aside) for a class without any image in it.
    """
    folder = manifest.root / "store" / f"{split}-{image_size}"
    described = _description(manifest, split, image_size)
    index = _read_index(folder)
    if index is None or index["made_from"] != described:
        if index is not None:
            reporter.say(f"{folder}: made from other shards; decoding again")
            _discard(folder)
        _build(manifest, split, image_size, folder, described, reporter)
        index = _read_index(folder)
        if index is None or index["made_from"] != described:
            raise UserError(f"{folder}: cannot be read back; delete it and run again")
    _check_limit(manifest, split, index["excluded"], max_corrupt)
    if index["excluded"]:
        reporter.say(_excluded_line(split, index["excluded"]))
    images, labels = _open_array(folder / "images.npy", index), _open_array(folder / "labels.npy", index)
    if split != "pool":
        _check_classes(manifest, split, labels)
    return ClientStore(
        images=images,
        labels=np.array(labels),
        keys=index["keys"],
        keywords=index["keywords"] or [None] * len(index["keys"]),
        class_names=manifest.class_names,
        split=split,
        excluded=index["excluded"],
    )


def _description(manifest: Manifest, split: str, image_size: int) -> dict[str, Any]:
    shards = manifest.shards(split)
    return {
        "layout": LAYOUT,
        "image_size": image_size,
        "class_names": list(manifest.class_names),
        "shards": [{"file": shard.file, "samples": shard.samples, "sha256": shard.sha256} for shard in shards],
    }


def _read_index(folder: Path) -> dict[str, Any] | None:
    path = folder / "index.json"
    if not path.exists():
        return None
    index = files.read_json(path)
    if not isinstance(index, dict) or not {"made_from", "keys", "keywords", "excluded"} <= set(index):
        raise UserError(f"{path}: not an index of a client store; delete {folder} and run again")
    return index


def _open_array(path: Path, index: dict[str, Any]) -> Any:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); delete {path.parent} and run again") from None
    if len(array) != len(index["keys"]):
        raise UserError(
            f"{path}: holds {len(array)} rows, expected {len(index['keys'])}; delete {path.parent} and run again"
        )
    return array


def _discard(folder: Path) -> None:
    """Take a stale store away under its name first, so that no reader sees half of it."""
    aside = folder.with_name(f".{folder.name}.stale")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _build(
    manifest: Manifest, split: str, size: int, folder: Path, described: dict[str, Any], reporter: Reporter
) -> None:
    expected = manifest.num_samples(split)
    excluded: list[dict[str, str]] = []
    keys: list[str] = []
    keywords: list[str | None] = []
    labels = np.empty(expected, dtype=np.int64)

    def pixels(sample: Sample) -> np.ndarray | str:
        try:
            return fit_square(decode(sample.image), size)
        except CorruptImage as error:
            return str(error)

    with published_folder(folder) as temporary, reporter.task(f"decoding {split}", expected, "images") as task:
        path = temporary / "images.npy"
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(expected, size, size, 3))
        files.reserve(path)
        for sample, image in threaded(pixels, checked_samples(manifest, split)):
            task.advance()
            if isinstance(image, str):
                excluded.append({"key": sample.key, "reason": image})
                continue
            images[len(keys)] = image
            labels[len(keys)] = NO_LABEL if sample.label is None else sample.label
            keys.append(sample.key)
            keywords.append(sample.keyword)
        images.flush()
        del images
        if excluded:
            _shorten(path, len(keys))
        np.save(temporary / "labels.npy", labels[: len(keys)])
        held = keywords if any(word is not None for word in keywords) else None
        files.write_json(
            temporary / "index.json", {"made_from": described, "keys": keys, "keywords": held, "excluded": excluded}
        )


def _shorten(path: Path, rows: int) -> None:
    """Cut the array to its first rows, block by block."""
    whole = np.load(path, mmap_mode="r")
    short = path.with_name("short.npy")
    target = np.lib.format.open_memmap(short, mode="w+", dtype=whole.dtype, shape=(rows, *whole.shape[1:]))
    files.reserve(short)
    for start in range(0, rows, 1024):
        target[start : start + 1024] = whole[start : min(start + 1024, rows)]
    target.flush()
    del whole, target
    short.replace(path)


def _check_limit(manifest: Manifest, split: str, excluded: list[dict[str, str]], max_corrupt: float) -> None:
    total = manifest.num_samples(split)
    if len(excluded) > max_corrupt * total:
        first = excluded[0]
        raise UserError(
            f"{manifest.root}: {len(excluded)} of {total} {split} images cannot be decoded, above "
            f"max_corrupt={max_corrupt} (e.g. {first['key']}: {first['reason']}); build again or raise the limit"
        )


def _check_classes(manifest: Manifest, split: str, labels: np.ndarray) -> None:
    """Before anything is trained for hours: a class without images can be neither learnt nor judged."""
    counts = np.bincount(labels, minlength=len(manifest.class_names))
    if (bare := np.flatnonzero(counts == 0)).size:
        more = f" (nor of {len(bare) - 1} more)" if len(bare) > 1 else ""
        raise UserError(
            f"{manifest.root}: {split} split: no image of class {manifest.class_names[bare[0]]}{more}; expected at "
            "least one of every class: build the shards from a source that has them"
        )


def _excluded_line(split: str, excluded: list[dict[str, str]]) -> str:
    named = ", ".join(f"{entry['key']} ({entry['reason']})" for entry in excluded[:3])
    return f"{split}: {len(excluded)} corrupt images left out: {named}" + (", …" if len(excluded) > 3 else "")
