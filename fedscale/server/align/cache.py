"""The alignment set as one file, with the teacher's logits: drawn once, and read by every later start that wants it.

It lies in the experiment's `shared/` folder under a fingerprint of all that determines it, so that a stopped stage, the
alignments between rounds and variants with the same captions, seed and teacher have the same one.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedscale import files
from fedscale.config import Config, to_dict
from fedscale.data.manifest import Manifest
from fedscale.data.open_pool import open_pool
from fedscale.runs import RunFolder
from fedscale.server.align.draw import AlignmentSet, Origin, Pool, draw
from fedscale.server.align.teacher import load_teacher
from fedscale.session import Session

LAYOUT = 1  # raise it when drawing changes, so that older sets are not taken for its result


def alignment_set(
    config: Config, manifest: Manifest, run: RunFolder, device: torch.device, session: Session
) -> AlignmentSet:
    """The set that the config's captions, seed and teacher make; the teacher is loaded only where it must be drawn.

    Raises UserError when the pool is not captioned or a class has no image, Stopped after a signal while drawing.
    """
    names = manifest.class_names
    pool = Pool(config, open_pool(config.data, session.reporter), run, names)
    path = cached_at(config, pool, manifest)
    if (found := _load(path)) is not None:
        session.reporter.say(f"align: the set and the teacher's logits are those of {path}")
        return found
    data = draw(config, pool, names, load_teacher(config, names, device), session)
    _save(data, path)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the teacher is gone; what follows may have its memory
    return data


def cached_at(config: Config, pool: Pool, manifest: Manifest) -> Path:
    """Where the set of this config lies, drawn or not."""
    whole = to_dict(config)
    settings = config.align
    names = ["labels", "images_per_class"]
    if settings.taught:
        names += ["teacher", *(["logit_scale"] if settings.teacher == "clip" else [])]
    inputs = {
        "layout": LAYOUT,
        "seed": config.seed,
        "classes": list(manifest.class_names),
        "image_size": config.data.image_size,
        "pool": pool.identity(),
        "align": {name: whole["align"][name] for name in names},
        "teacher": whole["teachers"][settings.teacher] if settings.taught else None,
    }
    return Path(config.out) / config.name / "shared" / f"alignment-{files.fingerprint(inputs)}.safetensors"


def _save(data: AlignmentSet, path: Path) -> None:
    facts = {"origins": [asdict(o) for o in data.origins], "scanned": data.scanned, "unreadable": data.unreadable}
    tensors = {
        "images": torch.from_numpy(data.images),
        "labels": torch.from_numpy(data.labels),
        "teacher_logits": data.teacher_logits.contiguous(),
    }
    with files.published(path) as temporary:
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})


def _load(path: Path) -> AlignmentSet | None:
    """The set of a whole file, or None."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in ("images", "labels", "teacher_logits")}
    except (SafetensorError, KeyError, TypeError, ValueError):  # cut short: it is drawn again
        return None
    return AlignmentSet(
        [Origin(**origin) for origin in facts["origins"]],
        tensors["images"].numpy(),
        tensors["labels"].numpy(),
        tensors["teacher_logits"],
        facts["scanned"],
        facts["unreadable"],
    )
