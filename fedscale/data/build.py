"""From originals to shards: deal, have every shard written (`build_shard`), publish."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from fedscale import files
from fedscale.config import RecipeConfig, to_dict
from fedscale.config.schema import DataConfig
from fedscale.data import manifest as manifests
from fedscale.data.build_shard import CorruptLimit, ShardJob, build_shard
from fedscale.data.folders import published_folder
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.plan import ORIGIN, Plan, make_plan
from fedscale.data.sources import Original, Source, open_source, source_folder
from fedscale.data.sources.spool import Spool
from fedscale.data.stopping import stopped_by_signals
from fedscale.data.workers import in_processes, processes, threads_each
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
    """The shards of a run, in `shard_folder`, built where absent, by as many processes as `build_shards` finds best.

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
    if data.needs_folder and not (folder / manifests.FILE).exists():
        source_folder(data, "data.")
    return build_shards(data, folder, reporter, jobs=None)


def build_shards(recipe: RecipeConfig, out: Path, reporter: Reporter, jobs: int | None = 1) -> Manifest:
    """Build all shards of a recipe into `out`, atomically; an `out` that is complete already is returned as it is.

    Images that do not decode are left out, counted and named. `jobs` processes write a shard each, which changes no
    byte; None is as many as there are cores, or one for a small build. (They are spawned: a script that asks for more
    than one needs its `if __name__ == "__main__"`.) Memory does not grow with the data set's images: each process holds
    `images.CHUNK` encoded ones (64 MB at most) and a decoded one a thread, and as many threads as cores decode in all.

    Raises UserError for a source that is missing or does not fit the recipe, more than `recipe.max_corrupt` undecodable
    images, a killed process, and an `out` that holds something else; Stopped after SIGINT or SIGTERM. None leaves a
    thing behind.
    """
    out = Path(out)
    if _is_complete(out, recipe):
        return Manifest.load(out)
    name = recipe.name or recipe.format
    with stopped_by_signals(f"building {name}:"), published_folder(out) as folder:
        source = open_source(recipe)
        plan = make_plan(recipe, source)
        for note in plan.notes:
            reporter.say(f"{name}: {note}")
        build = _Build(recipe, plan, folder)
        build.run(source, reporter, jobs)
        manifest = build.manifest()
        for word, images in zip(plan.class_names, manifest.class_counts("train"), strict=True):
            if images == 0:
                raise UserError(
                    f"source={recipe.source}: class {word} has no training image that decodes; copy it again"
                )
        manifest.save()
    for entry in manifest.excluded[:NAMED]:
        reporter.say(f"left out, cannot be decoded: {entry['name']} ({entry['reason']})")
    if manifest.excluded:
        named = f"all are named in {out / manifests.FILE}"
        reporter.say(f"{len(manifest.excluded)} of {build.total} images left out as corrupt; {named}")
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
        "imported": manifest.recipe.get("format") == "import",
        "base": manifest.base,
        "near_duplicates": manifest.near_duplicates,
        "splits": splits,
    }


class _Build:
    """One build under way: cuts the plan into shards, has them written into `folder`, keeps the manifest's entries."""

    def __init__(self, recipe: RecipeConfig, plan: Plan, folder: Path) -> None:
        self._recipe, self._plan, self._folder = recipe, plan, folder
        self._shards: dict[str, list[ShardInfo]] = {split: [] for split in plan.splits}
        self._excluded: list[dict[str, str]] = []
        self._name = recipe.name or recipe.format
        self.total = sum(len(members) for members in plan.splits.values())

    def manifest(self) -> Manifest:
        return Manifest(
            root=self._folder,
            name=self._name,
            class_names=self._plan.class_names,
            fingerprint=recipe_fingerprint(self._recipe),
            splits={split: tuple(infos) for split, infos in self._shards.items()},
            recipe=recipe_of(self._recipe),
            excluded=self._excluded,
        )

    def run(self, source: Source, reporter: Reporter, jobs: int | None) -> None:
        shards = sum(math.ceil(len(members) / self._recipe.samples_per_shard) for members in self._plan.splits.values())
        jobs = processes(jobs, shards, self.total)
        spool = self._spooled(source, reporter) if source.in_order else None
        with (
            reporter.task(f"building {self._name}", self.total, "images") as task,
            closing(in_processes(build_shard, self._jobs(spool or source, jobs), jobs, task)) as built,
        ):
            for shard in built:
                self._shards[shard.split].append(shard.info)
                self._excluded += shard.excluded
        if spool is not None:
            spool.remove()

    def _spooled(self, source: Source, reporter: Reporter) -> Spool:
        """What the plan wants of a source that is read in order, copied once."""
        spool = Spool(self._folder / ".spool")
        with reporter.task(f"copying {self._name}", self.total, "images") as task:
            for origin in ("train", "test"):
                parts = [members for split, members in self._plan.splits.items() if ORIGIN[split] == origin]
                if parts:
                    indices = np.sort(np.concatenate(parts))
                    spool.copy(origin, indices, _counted(source.read(origin, indices), task))
        return spool

    def _jobs(self, source: Source | Spool, jobs: int) -> Iterator[ShardJob]:
        """The shards of all splits in the manifest's order."""
        recipe = self._recipe
        limit = CorruptLimit(int(recipe.max_corrupt * self.total), recipe.max_corrupt, recipe.source)
        for split, members in self._plan.splits.items():
            for number, first in enumerate(range(0, len(members), recipe.samples_per_shard)):
                wanted = members[first : first + recipe.samples_per_shard]
                yield ShardJob(
                    folder=self._folder,
                    file=f"{split}/{number:05d}.tar",
                    split=split,
                    first=first,
                    originals=source.read(ORIGIN[split], wanted),
                    labels=self._plan.labels[ORIGIN[split]][wanted],
                    class_names=self._plan.class_names,
                    limit=limit,
                    threads=threads_each(jobs),
                )


def _counted(originals: Iterable[Original], task: Task) -> Iterator[Original]:
    for original in originals:
        task.advance()
        yield original


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
