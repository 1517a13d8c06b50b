"""Stage 1b: pretrain the compact model f on the captioned pool, beside CLIP and in front of a language model.

What leaves the stage is the weights of f alone: `export/model.safetensors`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from fedscale.config.schema import Config
from fedscale.data.build import ensure_shards
from fedscale.data.manifest import Manifest
from fedscale.data.open_pool import open_pool
from fedscale.device import pick_device
from fedscale.distributed.mesh import Mesh, open_mesh
from fedscale.distributed.strategy import read_launch_file
from fedscale.distributed.waiting import by_main
from fedscale.models import initial_model, save_tensors
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.server.pretrain.data import PairStream
from fedscale.server.pretrain.probe import run_probe
from fedscale.server.pretrain.trainer import Trainer
from fedscale.session import Session

TRACE = "trace.json"


def run(config: Config, run: RunFolder, session: Session, profile: bool = False) -> dict[str, Any] | None:
    """Pretrain for `pretrain.epochs` passes; writes `pretrain/export/model.safetensors`, metrics, the probe's figures.

    As one of the launched ranks; all but the main one are silent and return None. `profile` keeps a trace of a few
    steps. Raises UserError when the pool is not captioned, a teacher cannot be loaded or the loss is not finite;
    Stopped after a signal, with the state saved; RankLost when another rank is gone.
    """
    folder, device = run.stage("pretrain"), pick_device(config)
    if config.launch:
        read_launch_file(config.launch)
    with open_mesh(device, 1, config.pretrain.timeout, session.reporter.say, "pretrain") as mesh:
        if not mesh.is_main:
            session = Session(SilentReporter(), session.stop)
        manifest, pairs = _open_data(config, run, mesh, session)
        trainer = Trainer(config, manifest, pairs, folder, mesh)
        summary = _trained(trainer, config, pairs, folder, session, profile)
        state = trainer.student_state()
        if mesh.is_main:
            save_tensors(state, folder / "export" / "model.safetensors")
    if not mesh.is_main:
        return None
    student = initial_model(config, len(manifest.class_names))
    student.load_state_dict(state)
    return {**summary, "probe": _probed(config, manifest, student.eval().to(device), folder, session)}


def _open_data(config: Config, run: RunFolder, mesh: Mesh, session: Session) -> tuple[Manifest, PairStream]:
    """The shards and the pairs; the main rank builds what is missing before the others look."""

    def opened(session: Session) -> tuple[Manifest, PairStream]:
        manifest = ensure_shards(config.data, session.reporter)
        return manifest, PairStream(config, open_pool(config.data, session.reporter), run, manifest.class_names)

    manifest, pairs = by_main(mesh, session, opened) or opened(session)
    if pairs.num_skipped:
        session.reporter.say(f"pretrain: {pairs.num_skipped} captioned images are left out ({pairs.skipped})")
    if pairs.note:
        session.reporter.say(f"pretrain: {pairs.note}")
    return manifest, pairs


def _trained(
    trainer: Trainer, config: Config, pairs: PairStream, folder: Path, session: Session, profile: bool
) -> dict[str, Any]:
    """Train from where the trainer stands; what `done.json` tells of it."""
    started_at = trainer.step
    if started_at:
        session.reporter.say(f"pretrain: resuming after step {started_at} of {trainer.steps}")
    began = time.perf_counter()
    with session.reporter.task("pretrain", trainer.steps, "steps") as task:
        task.advance(started_at)
        trainer.train(session, task, folder / TRACE if profile else None)
    trained = (trainer.steps - started_at) * config.pretrain.batch_size
    return {
        "steps": trainer.steps,
        "images": pairs.num_pairs,
        "skipped": pairs.num_skipped,
        "trainable_parameters": trainer.num_trainable,
        "parameter_bytes": trainer.parameter_bytes,  # that the main rank holds between steps
        "images_per_second": trained / (time.perf_counter() - began) if trained else None,
        **trainer.watch.shares(),
        **trainer.last_losses(),
    }


def _probed(config: Config, manifest: Manifest, student: nn.Module, folder: Path, session: Session) -> list[Any]:
    return run_probe(config, manifest, student, folder, session) if config.pretrain.probe.enabled else []
