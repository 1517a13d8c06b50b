"""Stage 3: align the federated model with a teacher on a small, class-balanced set (METHOD.md, stage 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.build import ensure_shards
from fedscale.data.manifest import Manifest
from fedscale.data.partition import Partition
from fedscale.data.store import ClientStore, open_store
from fedscale.device import pick_device
from fedscale.distributed.mesh import Mesh, open_mesh, rows_of
from fedscale.distributed.strategy import read_launch_file
from fedscale.distributed.training import Training
from fedscale.distributed.waiting import by_main
from fedscale.errors import UserError
from fedscale.evaluation import Evaluation, evaluate
from fedscale.models import build_model, save_tensors
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.server.align.cache import alignment_set
from fedscale.server.align.draw import AlignmentSet
from fedscale.server.align.train import make_optimizer, train
from fedscale.session import Session


def run(config: Config, run: RunFolder, session: Session) -> dict[str, Any] | None:
    """Align `federate/model.safetensors`; writes the aligned model, its evaluation, the set and the teacher's logits.

    As one of the launched ranks; all but the main one are silent and return None. Raises UserError when the federated
    model or the captions are missing, a class has no image, or the loss is not finite; Stopped after a signal (the
    training is short, and begins again; the set is kept); RankLost when another rank is gone.
    """
    device = pick_device(config)
    if config.launch:
        read_launch_file(config.launch)
    with open_mesh(device, 1, config.align.timeout, session.reporter.say, "align") as mesh:
        if not mesh.is_main:
            session = Session(SilentReporter(), session.stop)
        stage = _Stage(config, run, mesh, session)
        summary = stage.carry_out()
        return summary if mesh.is_main else None


class _Stage:
    """The data and the model of one run of the stage, on one of its ranks."""

    def __init__(self, config: Config, run: RunFolder, mesh: Mesh, session: Session) -> None:
        self.config, self.mesh, self.session, self.folder = config, mesh, session, run.stage("align")

        def prepared(session: Session) -> tuple[Manifest, ClientStore, ClientStore, AlignmentSet]:
            reporter, size, corrupt = session.reporter, config.data.image_size, config.data.max_corrupt
            manifest = ensure_shards(config.data, reporter)
            judged = open_store(manifest, config.eval.split, size, reporter, corrupt)
            clients = open_store(manifest, "train", size, reporter, corrupt)
            self.model = federated_model(config, manifest, run.stage("federate") / "model.safetensors")
            return manifest, judged, clients, alignment_set(config, manifest, run, mesh.device, session)

        found = by_main(mesh, session, prepared)
        manifest, self.judged, clients, self.data = found or prepared(session)  # the others read what the main one made
        self.manifest, self.names = manifest, manifest.class_names
        self.labels = np.asarray(clients.labels)
        self.counts = np.bincount(self.labels, minlength=len(self.names)).tolist()
        self.partition = run.stage("federate") / "partition.json"

    def carry_out(self) -> dict[str, Any]:
        config, data, folder, main = self.config, self.data, self.folder, self.mesh.is_main
        if main:
            _record(data, self.manifest, config, folder, self.session)
            (folder / "metrics.jsonl").unlink(missing_ok=True)
        before = self._evaluation(self.model.to(self.mesh.device))
        aligned = self._trained()
        model = build_model(config.model, len(self.names), config.data.image_size)
        model.load_state_dict(aligned)
        after = self._evaluation(model.to(self.mesh.device))
        if main:
            save_tensors(aligned, folder / "model.safetensors")
            if self.partition.exists():  # not where a model from elsewhere is aligned
                dealt = Partition.load(self.partition, len(self.labels)).clients
                after = after.over_clients(self.labels, dealt)
            files.write_json(folder / "evaluation.json", after.to_dict())
        return {
            **after.scores(),
            "before": before.scores(),
            "images": len(data.labels),
            "agreement": data.agreement,
            "scanned": data.scanned,
            "unreadable": data.unreadable,
        }

    def _trained(self) -> dict[str, Tensor]:
        """The aligned model's whole state."""
        config, mesh = self.config, self.mesh
        part = max(1, config.align.batch_size // mesh.world)
        training = Training(mesh, self.model, make_optimizer(self.model, config), micro_batch=part)

        def log(row: dict[str, Any]) -> None:
            if mesh.is_main:
                files.append_jsonl(self.folder / "metrics.jsonl", row)

        train(training, mesh, self.data, len(self.names), config, config.seed, self.session, log)
        training.average_buffers()
        return training.whole_state(self.model)

    def _evaluation(self, model: nn.Module) -> Evaluation:
        """The model on every image of the split, each rank on its part."""
        mesh = self.mesh
        part = rows_of(len(self.judged.labels), mesh.rank, mesh.world)
        return evaluate(model, self.judged, self.names, self.counts, self.config, part, mesh.sum_over_clients)


def federated_model(config: Config, manifest: Manifest, path: Path) -> nn.Module:
    """The model that stage 2 left behind. Raises UserError when it is missing or of another shape."""
    if not path.exists():
        raise UserError(f"{path}: no such file; run `fedscale federate` with the same config first")
    model = build_model(config.model, len(manifest.class_names), config.data.image_size)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError):
        wanted = (
            f"model.name={config.model.name}, model.width={config.model.width}, "
            f"model.projection={config.model.projection}, {len(manifest.class_names)} classes"
        )
        raise UserError(f"{path}: not the weights of {wanted}; run `fedscale federate` with the same config") from None
    return model


def _record(data: AlignmentSet, manifest: Manifest, config: Config, folder: Path, session: Session) -> None:
    """Write the set's table and the teacher's logits, and say what a reader should know of them."""
    per_class = config.align.images_per_class
    if data.taught:
        with files.published(folder / "teacher.safetensors") as temporary:
            save_file({"logits": data.teacher_logits.contiguous()}, temporary)
    facts = {
        "teacher": config.align.teacher if data.taught else None,
        "labels": config.align.labels,
        "images_per_class": per_class,
    }
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
