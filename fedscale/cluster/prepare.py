"""`fedscale prepare`: what all stages read, made once before any of them; and a copy of it on a node's own disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fedscale.config import Config
from fedscale.data import manifest as manifests
from fedscale.data.build import shard_folder
from fedscale.data.folders import published_folder
from fedscale.errors import UserError
from fedscale.files import unwritable
from fedscale.progress import Reporter
from fedscale.session import Session
from fedscale.stages import children


def is_prepared(config: Config) -> bool:
    """Whether the shards are there; offline teachers are looked for in the job itself."""
    return (shard_folder(config.data) / manifests.FILE).exists() and not config.teachers.offline.enabled


def prepare(config: Config, session: Session) -> None:
    """Build shards, client store and, where they are asked for, the offline teachers, unless they are there."""
    from fedscale.pipeline import prepare_data
    from fedscale.teachers.offline import ensure_offline_teachers

    prepare_data(config, session)
    for child in children(config):
        if child.teachers.offline.enabled:
            ensure_offline_teachers(child, Path(config.out) / config.name, session)


def stage_in(config: Config, target: Path, reporter: Reporter) -> Path:
    """Copy the shards, with the client store beside them, and hub weights into `target`; returns the shards' copy.

    What is there already is left alone, what is copied is whole or absent. Hub weights go to `target/hub`, for
    HF_HUB_CACHE; none, where all teachers are local folders. Raises UserError for weights that were not fetched.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    shards = shard_folder(config.data)
    _copy(shards, target / shards.name, reporter)
    for repository in _repositories(config):
        name = f"models--{repository.replace('/', '--')}"
        source = Path(HF_HUB_CACHE) / name
        if not source.is_dir():
            raise UserError(f"{source}: no such folder; run `fedscale fetch` with the same config first")
        _copy(source, target / "hub" / name, reporter)
    return target / shards.name


def _copy(source: Path, target: Path, reporter: Reporter) -> None:
    if target.exists():
        return
    try:
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file() and not path.is_symlink())
        free = shutil.disk_usage(_existing(target)).free
    except OSError as error:
        raise unwritable(target, error) from error
    if size > free:
        raise UserError(f"--to={target.parent}: {free / 1e9:.2f} GB are free, {size / 1e9:.2f} are to be copied")
    reporter.say(f"copying {source} to {target}: {size / 1e9:.2f} GB")
    with published_folder(target) as fresh:
        shutil.copytree(source, fresh, symlinks=True, dirs_exist_ok=True)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _repositories(config: Config) -> list[str]:
    """The hub repositories of the teachers that `fedscale fetch` downloads into the hub's cache."""
    found = []
    for child in children(config):
        teachers = child.teachers
        if teachers.lm.model:
            found.append(teachers.lm.model)
        if not teachers.offline.enabled:
            found += [teachers.mllm.model, clip_repository(teachers.clip.model, teachers.clip.pretrained)]
    return [name for name in dict.fromkeys(found) if name and not _is_local(name)]


def clip_repository(model: str, pretrained: str | None) -> str:
    """The hub repository that open_clip takes these weights from; empty for local ones and those of other sites."""
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    if _is_local(model) or not pretrained or os.path.isfile(pretrained):
        return ""
    from open_clip.pretrained import get_pretrained_cfg

    return os.path.split(get_pretrained_cfg(model.replace("/", "-"), pretrained).get("hf_hub", ""))[0]


def _is_local(model: str) -> bool:
    from fedscale import house

    try:
        return house.find(model.removeprefix("local-dir:")).is_dir()
    except UserError:
        return False
