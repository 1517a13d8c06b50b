"""From originals to shards: read, verify by decoding, deal, write, publish."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedscale import files
from fedscale.config import RecipeConfig, to_dict
from fedscale.config.schema import DataConfig
from fedscale.data import manifest as manifests
from fedscale.data.folders import published_folder
from fedscale.data.images import CorruptImage, decode, encode_png, threaded
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.plan import ORIGIN, Plan, make_plan
from fedscale.data.shards import Sample, write_shard
from fedscale.data.sources import Original, Source, open_source, source_folder
from fedscale.data.sources.spool import Spool
from fedscale.errors import UserError
from fedscale.progress import Reporter, Task

LAYOUT = 1  # of the shards; raised when their content changes for an unchanged recipe
NAMED = 5  # corrupt images named on the screen; the manifest names all


def recipe_of(config: RecipeConfig) -> dict[str, Any]:
    """The recipe's own keys of a recipe or of a run's `data` section, as plain values."""
    names = [entry.name for entry in dataclasses.fields(RecipeConfig)]
    return {name: value for name, value in to_dict(config).items() if name in names}


def recipe_fingerprint(config: RecipeConfig) -> str:
    """What determines the shards' content, hashed; the limit of corrupt images does not."""
    recipe = {key: value for key, value in recipe_of(config).items() if key != "max_corrupt"}
    return files.fingerprint({"layout": LAYOUT, **recipe})


def shard_folder(data: DataConfig) -> Path:
    """Where a run's shards lie: `data.dir`, or `shards/<name>-<fingerprint>`."""
    return Path(data.dir or f"shards/{data.name or data.format}-{recipe_fingerprint(data)[:8]}")


def ensure_shards(data: DataConfig, reporter: Reporter) -> Manifest:
    """The shards of a run, in `shard_folder`, built where absent.

    Raises UserError where neither shards nor originals are there, or where `data.dir` holds another recipe's shards.
    """
    if data.dir is not None and (Path(data.dir) / manifests.FILE).exists():
        found = Manifest.load(data.dir)
        if data.recipe:
            _check_recipe(found, data)
        return found
    if data.dir is not None and not data.recipe:
        raise UserError(
            f"data.dir={data.dir}: no shards; build them with `fedscale shards build`, or name a data.recipe"
        )
    folder = shard_folder(data)
    if data.format != "shapes" and not (folder / manifests.FILE).exists():
        source_folder(data, "data.")
    return build_shards(data, folder, reporter)


def build_shards(recipe: RecipeConfig, out: Path, reporter: Reporter) -> Manifest:
    """Build all shards of a recipe into `out`, atomically; an `out` that is complete already is returned as it is.

    Images that do not decode are left out, counted and named. Raises UserError for a source that is missing or does
    not fit the recipe, more than `recipe.max_corrupt` undecodable images, and an `out` that holds something else.
    """
    out = Path(out)
    if _is_complete(out, recipe):
        return Manifest.load(out)
    with published_folder(out) as folder:
        source = open_source(recipe)
        plan = make_plan(recipe, source)
        for note in plan.notes:
            reporter.say(f"{recipe.name or recipe.format}: {note}")
        total = sum(len(members) for members in plan.splits.values())
        builder = _Builder(recipe, plan, folder, int(recipe.max_corrupt * total))
        with reporter.task(f"building {recipe.name or recipe.format}", total, "images") as task:
            builder.write(source, task)
        for name, images in zip(plan.class_names, builder.manifest().class_counts("train"), strict=True):
            if images == 0:
                raise UserError(
                    f"source={recipe.source}: class {name} has no training image that decodes; copy it again"
                )
        builder.manifest().save()
    for entry in builder.excluded[:NAMED]:
        reporter.say(f"left out, cannot be decoded: {entry['name']} ({entry['reason']})")
    if builder.excluded:
        named = f"all are named in {out / manifests.FILE}"
        reporter.say(f"{len(builder.excluded)} of {total} images left out as corrupt; {named}")
    _is_complete(out, recipe)  # another process may have published something else there meanwhile
    return Manifest.load(out)


def status(folder: Path | str) -> dict[str, Any]:
    """What lies in a shard folder, for `fedscale shards status --json`: in all, and class counts by split."""
    manifest = Manifest.load(folder)
    splits = {
        split: {
            "shards": len(shards),
            "samples": manifest.num_samples(split),
            "bytes": sum(shard.bytes for shard in shards),
            "class_counts": dict(zip(manifest.class_names, manifest.class_counts(split), strict=True)),
        }
        for split, shards in manifest.splits.items()
    }
    return {
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "classes": len(manifest.class_names),
        "shards": sum(entry["shards"] for entry in splits.values()),
        "samples": sum(entry["samples"] for entry in splits.values()),
        "excluded": len(manifest.excluded),
        "splits": splits,
    }


class _Builder:
    """One build under way: writes split after split into `folder` and keeps count."""

    def __init__(self, recipe: RecipeConfig, plan: Plan, folder: Path, most_corrupt: int) -> None:
        self._recipe, self._plan, self._folder, self._most_corrupt = recipe, plan, folder, most_corrupt
        self._shards: dict[str, tuple[ShardInfo, ...]] = {}
        self.excluded: list[dict[str, str]] = []

    def manifest(self) -> Manifest:
        return Manifest(
            root=self._folder,
            name=self._recipe.name or self._recipe.format,
            class_names=self._plan.class_names,
            fingerprint=recipe_fingerprint(self._recipe),
            splits=self._shards,
            recipe=recipe_of(self._recipe),
            excluded=self.excluded,
        )

    def write(self, source: Source, task: Task) -> None:
        spools = self._spooled(source) if source.in_order else {}
        per_shard = self._recipe.samples_per_shard
        for split, members in self._plan.splits.items():
            reader = spools.get(ORIGIN[split], None)
            infos = []
            for number, start in enumerate(range(0, len(members), per_shard)):
                wanted = members[start : start + per_shard]
                originals = reader.read(wanted) if reader else source.read(ORIGIN[split], wanted)
                file = f"{split}/{number:05d}.tar"
                histogram: Counter[str] = Counter()
                written = write_shard(
                    self._folder / file, self._samples(split, start, wanted, originals, histogram, task)
                )
                infos.append(ShardInfo(file, written.samples, written.bytes, written.sha256, dict(histogram)))
            self._shards[split] = tuple(infos)
        for origin in spools:
            (self._folder / f".{origin}.spool").unlink()

    def _spooled(self, source: Source) -> dict[str, Spool]:
        spools = {}
        for origin in ("train", "test"):
            parts = [members for split, members in self._plan.splits.items() if ORIGIN[split] == origin]
            if parts:
                indices = np.sort(np.concatenate(parts))
                spools[origin] = Spool(self._folder / f".{origin}.spool", indices, source.read(origin, indices))
        return spools

    def _samples(
        self,
        split: str,
        start: int,
        wanted: np.ndarray,
        originals: Iterator[Original],
        histogram: Counter[str],
        task: Task,
    ) -> Iterator[Sample]:
        """The shard's samples; a corrupt original leaves a gap in the numbering, so that no other key depends on it."""
        labels = self._plan.labels[ORIGIN[split]]
        for offset, (original, (suffix, image)) in enumerate(threaded(_verified, originals)):
            task.advance()
            if not suffix:
                self._exclude(original.name, image.decode())
                continue
            label = int(labels[wanted[offset]])
            word = self._plan.class_names[label]
            histogram[word] += 1
            open_web = split == "pool"  # there, the crawl's search word is all that the server may know
            yield Sample(
                key=f"{start + offset:08d}",
                image=image,
                suffix=suffix,
                label=None if open_web else label,
                keyword=word if open_web else None,
                source=original.name,
            )

    def _exclude(self, name: str, reason: str) -> None:
        self.excluded.append({"name": name, "reason": reason})
        if len(self.excluded) > self._most_corrupt:
            raise UserError(
                f"source={self._recipe.source}: more than {self._most_corrupt} images cannot be decoded, the limit of "
                f"max_corrupt={self._recipe.max_corrupt} (the last: {name}, {reason}); copy it again or raise the limit"
            )


def _verified(original: Original) -> tuple[str, bytes]:
    """(suffix, bytes) of an image that decodes, other formats made PNG; ("", reason) of one that does not."""
    try:
        image = decode(original.image)
    except CorruptImage as error:
        return "", str(error).encode()
    if image.format in ("JPEG", "PNG"):
        return ("jpg" if image.format == "JPEG" else "png"), original.image
    return "png", encode_png(image)


def _is_complete(out: Path, recipe: RecipeConfig) -> bool:
    """Whether `out` holds this recipe's shards. Raises UserError where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / manifests.FILE).is_file():
        raise UserError(f"{out}: exists and holds no shards; choose another folder, or delete it")
    found = Manifest.load(out)
    if found.fingerprint != recipe_fingerprint(recipe):
        changes = differences(found.recipe, recipe_of(recipe)) or ["an older layout"]
        listed = "; ".join(changes[:3])
        raise UserError(f"{out}: holds shards of another recipe ({listed}); choose another folder, or delete it")
    return True


def _check_recipe(found: Manifest, data: DataConfig) -> None:
    """A given `data.dir` must be of the config's recipe, whatever its originals' place and form were."""
    free = ("name", "format", "source", "classes", "class_names", "train_list", "test_list", "samples_per_shard")
    changes = differences(found.recipe, recipe_of(data), free)
    if changes:
        listed = "; ".join(changes[:3])
        raise UserError(
            f"data.dir={data.dir}: built by another recipe ({listed}); say the same in `data`, or drop data.dir"
        )


def differences(old: dict[str, Any], new: dict[str, Any], ignored: tuple[str, ...] = ()) -> list[str]:
    """Lines `key was A, is B` for the keys of two recipes that differ."""
    lines = []
    for key in sorted({*old, *new} - {*ignored, "max_corrupt"}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += [f"{key}.{line}" for line in differences(before, now)]
        elif before != now:
            lines.append(f"{key} was {before}, is {now}")
    return lines
