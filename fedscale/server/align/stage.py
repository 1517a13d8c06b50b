"""Stage 3: align the federated model with a teacher on a small, class-balanced set (METHOD.md, stage 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.build import ensure_shards
from fedscale.data.manifest import Manifest
from fedscale.data.open_pool import open_pool
from fedscale.data.store import open_store
from fedscale.device import pick_device
from fedscale.errors import UserError
from fedscale.evaluation import evaluate
from fedscale.models import build_model, save_weights
from fedscale.runs import RunFolder
from fedscale.server.align.draw import AlignmentSet, Pool, draw
from fedscale.server.align.teacher import load_teacher
from fedscale.server.align.train import train
from fedscale.session import Session


def run(config: Config, run: RunFolder, session: Session) -> dict[str, Any]:
    """Align `federate/model.safetensors`; writes the aligned model, its evaluation, the set and the teacher's logits.

    Raises UserError when the federated model or the captions are missing, a class has no image, or the loss is not
    finite; Stopped after a signal (the stage is short, and begins again).
    """
    folder, reporter = run.stage("align"), session.reporter
    manifest = ensure_shards(config.data, reporter)
    names = manifest.class_names
    device = pick_device(config)
    model = federated_model(config, manifest, run.stage("federate") / "model.safetensors").to(device)
    pool = Pool(config, open_pool(config.data, reporter), run, names)
    data = draw(config, pool, names, load_teacher(config, names, device), session)
    _record(data, manifest, config, folder, session)

    size, corrupt = config.data.image_size, config.data.max_corrupt
    judged = open_store(manifest, config.eval.split, size, reporter, corrupt)
    clients = open_store(manifest, "train", size, reporter, corrupt)
    counts = np.bincount(clients.labels, minlength=len(names)).tolist()
    before = evaluate(model, judged, names, counts, config)
    model = train(model, data, len(names), config, folder, session)
    after = evaluate(model, judged, names, counts, config)
    save_weights(model, folder / "model.safetensors")
    files.write_json(folder / "evaluation.json", after.to_dict())
    return {
        **after.scores(),
        "before": before.scores(),
        "images": len(data.labels),
        "agreement": data.agreement,
        "scanned": data.scanned,
        "unreadable": data.unreadable,
    }


def federated_model(config: Config, manifest: Manifest, path: Path) -> nn.Module:
    """The model that stage 2 left behind. Raises UserError when it is missing or of another shape."""
    if not path.exists():
        raise UserError(f"{path}: no such file; run `fedscale federate` with the same config first")
    model = build_model(config.model, len(manifest.class_names), config.data.image_size)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError):
        wanted = (
            f"model.name={config.model.name}, model.width={config.model.width}, {len(manifest.class_names)} classes"
        )
        raise UserError(f"{path}: not the weights of {wanted}; run `fedscale federate` with the same config") from None
    return model


def _record(data: AlignmentSet, manifest: Manifest, config: Config, folder: Path, session: Session) -> None:
    """Write the set's table and the teacher's logits, and say what a reader should know of them."""
    per_class = config.align.images_per_class
    with files.published(folder / "teacher.safetensors") as temporary:
        save_file({"logits": data.teacher_logits.contiguous()}, temporary)
    facts = {"teacher": config.align.teacher, "labels": config.align.labels, "images_per_class": per_class}
    files.write_json(folder / "alignment_set.json", {**facts, **data.to_dict(manifest.class_names)})
    counts = data.counts(len(manifest.class_names))
    short = [f"{name} {n}" for name, n in zip(manifest.class_names, counts, strict=True) if n < per_class]
    if short:
        session.reporter.say(
            f"align: {len(short)} classes have fewer than {per_class} images, repeated instead: {', '.join(short[:5])}"
        )
    if data.unreadable:
        session.reporter.say(f"align: {data.unreadable} captioned images cannot be decoded and are left out")
    if data.agreement is not None:
        session.reporter.say(
            f"align: {len(data.labels)} images of {data.scanned} looked at; the teacher's label is the keyword for "
            f"{100 * data.agreement:.1f}% of them"
        )
