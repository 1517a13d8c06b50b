"""The teachers that a config's stages load: local, in the hub's cache, or fetchable from here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedscale.config import Config
from fedscale.config.methods import needs_clip
from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient
from fedscale.models.hub import REMEDY, local_folder, offline_where_unreachable
from fedscale.stages import children, needed

HUGGING, OPEN_CLIP = "config.json", "open_clip_config.json"  # what a folder of weights holds beside them
SUFFIXES = (".safetensors", ".bin", ".pt")  # of weights


@dataclass(frozen=True)
class Weights:
    """One teacher: the settings' dotted name, what it names, and at which revision."""

    section: str
    model: str
    revision: str | None = None
    pretrained: str | None = None


def teachers(patient: Patient) -> list[Finding]:
    """A finding for each teacher that some run needs. Raises UserError: a folder that holds no model."""
    config = patient.config
    found = [_teacher(one) for one in dict.fromkeys(one for run in children(config) for one in used_by(run))]
    if any(run.teachers.offline.enabled for run in children(config)):
        told = "trained from scratch where they are needed, on the open pool and its keywords"
        found.append(Finding("teachers.offline", Gravity.FINE, told))
    return found


def used_by(run: Config) -> Iterator[Weights]:
    """The teachers that the stages of one run load, those trained offline aside."""
    named, stages, lessons = run.teachers, needed(run), run.pretrain
    distils = "pretrain" in stages and lessons.objective == "distillation"
    asks = "align" in stages and run.align.taught
    captions = "caption" in stages
    mllm = captions and run.caption.engine in ("hf", "vllm")
    mllm = mllm or (distils and not named.lm.model) or (asks and run.align.teacher == "mllm")
    clip = (captions and run.caption.features.enabled) or (distils and lessons.teacher == "live")
    clip = clip or (asks and run.align.teacher == "clip") or needs_clip(run.federate.method)
    if mllm and not named.offline.enabled:
        yield Weights("teachers.mllm", named.mllm.model, named.mllm.revision)
    if distils and named.lm.model:
        yield Weights("teachers.lm", named.lm.model, named.lm.revision)
    if clip and not named.offline.enabled:
        yield Weights("teachers.clip", named.clip.model, pretrained=named.clip.pretrained)


def _teacher(one: Weights) -> Finding:
    clip = one.section == "teachers.clip"
    if one.pretrained and Path(one.pretrained).is_file():
        return Finding(one.section, Gravity.FINE, f"{one.pretrained}: a local file")
    marker = OPEN_CLIP if clip else HUGGING
    if folder := None if ":" in one.model else local_folder(one.model, marker, f"{one.section}.model"):
        if not holds_weights(folder):
            return Finding(one.section, Gravity.BROKEN, f"{folder}: without its weights", "copy the whole folder")
        return Finding(one.section, Gravity.FINE, f"{one.model}: a local folder")
    repository = one.model
    if clip:
        from fedscale.cluster.prepare import clip_repository

        repository = clip_repository(one.model, one.pretrained)
        if not repository:
            told = f"{one.model} ({one.pretrained}): not on the hub; open_clip's own download was not looked for"
            return Finding(one.section, Gravity.UNCHECKED, told, "`fedscale fetch CONFIG` where there is a network")
    return _of_hub(one, repository)


def _of_hub(one: Weights, repository: str) -> Finding:
    from huggingface_hub import constants

    if (folder := cached(repository, one.revision)) is not None and holds_weights(folder):
        return Finding(one.section, Gravity.FINE, f"{repository}: in the hub's cache")
    with offline_where_unreachable():
        offline = constants.HF_HUB_OFFLINE
    lacks = "not whole in the hub's cache" if folder else "not in the hub's cache"
    if offline:
        return Finding(one.section, Gravity.BROKEN, f"{repository}: {lacks}, and the hub cannot be reached", REMEDY)
    remedy = "`fedscale fetch CONFIG` downloads it; a run would, at its start"
    return Finding(one.section, Gravity.NOTE, f"{repository}: {lacks}; the hub can be reached", remedy)


def cached(repository: str, revision: str | None) -> Path | None:
    """The folder of this revision in the hub's cache; None where it was never fetched."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    ref, snapshot = home / "refs" / (revision or "main"), home / "snapshots" / (revision or "")
    if ref.is_file():
        snapshot = home / "snapshots" / ref.read_text().strip()
    return snapshot if snapshot.is_dir() and snapshot.name != "snapshots" else None


def holds_weights(folder: Path) -> bool:
    """Whether its weights are there; all the parts that an index names, where there is one."""
    for index in folder.glob("*.safetensors.index.json"):
        parts = set(json.loads(index.read_text())["weight_map"].values())
        return all((folder / part).is_file() for part in parts)
    return any(path.suffix in SUFFIXES and path.is_file() for path in folder.iterdir())
