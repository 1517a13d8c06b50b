"""The training loop of stage 1b, the same under every strategy: one process, DDP, FSDP2, ZeRO-1/2/3.

The loss of a step is a mean over the whole step (`task.Whole`), the order, the augmentation and the kinds of text are
functions of (seed, epoch, image), and the schedules of the step: so neither the ranks nor a restart change the result.
Teachers, loader and schedules stay outside `prepare` (PITFALLS D 29, 32, 33).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.augment import augment_each, normalise
from fedscale.data.manifest import Manifest
from fedscale.distributed.checkpoint import checkpoint_of_all, newest_of_all
from fedscale.distributed.mesh import Mesh
from fedscale.distributed.training import Training
from fedscale.errors import Diverged, Stopped, UserError
from fedscale.models import initial_model
from fedscale.progress import Task
from fedscale.rng import derive
from fedscale.server.pretrain.batch import Batch
from fedscale.server.pretrain.data import PairStream
from fedscale.server.pretrain.lessons import lesson_of
from fedscale.server.pretrain.schedule import lr_at
from fedscale.server.pretrain.stopwatch import Stopwatch
from fedscale.session import Session

METRIC_ROWS = 500  # at most about so many rows in metrics.jsonl
LOSSES = ("loss", "lm", "feature", "contrastive")
PROFILED = slice(3, 6)  # steps after the start of which `--profile` keeps a trace


class Trainer:
    """Everything that a step needs, resumed from the newest complete checkpoint of `folder`."""

    def __init__(self, config: Config, manifest: Manifest, pairs: PairStream, folder: Path, mesh: Mesh) -> None:
        settings = config.pretrain
        self._config, self._settings, self._folder, self._pairs, self._mesh = config, settings, folder, pairs, mesh
        self.steps = max(1, settings.epochs * pairs.num_usable // settings.batch_size)
        self._student = initial_model(config, len(manifest.class_names))
        self._lesson = lesson_of(config, self._student, pairs, mesh)
        task = self._lesson.module
        self.num_trainable = sum(p.numel() for p in task.parameters() if p.requires_grad)
        optimizer = torch.optim.AdamW(_parameter_groups(task, settings.weight_decay), lr=settings.lr)
        self._training = Training(
            mesh,
            task,
            optimizer,
            settings.mixed_precision,
            micro_batch=max(1, settings.batch_size // settings.accumulation // mesh.world),
            accumulation=settings.accumulation,
            max_norm=settings.clip_grad_norm,
            tracked=folder / "tensorboard" if settings.tensorboard else None,
        )
        self.parameter_bytes = self._training.parameter_bytes()
        self.watch = Stopwatch(mesh.device)
        self.step = self._resume()
        self._training.module.train()

    def train(self, session: Session, progress: Task, trace: Path | None = None) -> None:
        """Train to the last step; `trace`: where to keep a profile of a few steps.

        Raises Stopped after a signal on any rank, with the state saved, and RankLost when a rank is gone.
        """
        settings, mesh = self._settings, self._mesh
        batches = self._pairs.batches(self.step, settings.batch_size, mesh.rank, mesh.world, settings.accumulation)
        with self._training.tracking("pretrain"), _profiled(trace if mesh.is_main else None) as profiler:
            while self.step < self.steps:
                with mesh.watched(f"step {self.step + 1}"):
                    row = self.one_step(batches)
                if self.step % max(1, self.steps // METRIC_ROWS) == 0 or self.step == self.steps:
                    self._log(row)
                profiler.step()
                stop = mesh.any(session.stop_requested)
                if self.step % settings.save_every == 0 or self.step == self.steps or stop:
                    self._save()
                progress.advance(note=f"loss {row['loss']:.3f}")
                if stop and self.step < self.steps:
                    raise Stopped(f"pretrain: stopped after step {self.step} of {self.steps}")

    def student_state(self) -> dict[str, Tensor]:
        """f as trained, whole and on the CPU; every rank must call it."""
        self._training.average_buffers()
        return self._training.whole_state(self._student)

    def last_losses(self) -> dict[str, float]:
        """The losses of the last logged step, by name."""
        rows = files.read_jsonl(self._folder / "metrics.jsonl")
        return {name: rows[-1][name] for name in LOSSES if rows and name in rows[-1]}

    def one_step(self, batches: Iterator[list[Batch]]) -> dict[str, Any]:
        """One optimiser step; returns its metrics row."""
        settings, training, step = self._settings, self._training, self.step
        self.watch.start()
        with self.watch.waiting():
            parts = next(batches)
        lr = lr_at(step, self.steps, settings.lr, settings.warmup)
        # No generator state has to be saved. Dropout is the one thing that differs with the number of ranks.
        _seed(self._training.device, derive(self._config.seed, "dropout", step, self._mesh.rank))
        told = self._lesson.begin(parts, step, self.steps, self._counted)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            with training.passing(last):
                losses = self._losses(number, part)
                training.backward(losses["loss"], last)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach().double()
        values = dict(zip(sums, self._summed(torch.stack(list(sums.values()))), strict=True))
        if not all(map(math.isfinite, values.values())):
            raise Diverged(
                f"pretrain: the loss is not finite at step {step + 1} ({values}); lower pretrain.lr={settings.lr}, "
                "or use pretrain.mixed_precision=no"
            )
        norm = training.step(lr)
        times = self.watch.stop(settings.batch_size)
        self.step += 1
        return {"step": self.step, **values, "grad_norm": norm, **told, "lr": lr, **times}

    def _losses(self, part_number: int, batch: Batch) -> dict[str, Tensor]:
        config = self._config
        images = batch.images.to(self._training.device)
        kind = "none" if batch.augmented else self._settings.augment
        numbers = [derive(config.seed, "pretrain augment", self.step, *key) >> 2 for key in batch.keys]
        shown = normalise(augment_each(images, kind, numbers), config.data.mean, config.data.std)
        beside = self._lesson.beside(part_number, batch, images, self.watch)
        losses: dict[str, Tensor] = self._training.module(shown, *beside)
        return losses

    def _counted(self, count: int) -> int:
        return int(self._summed(torch.tensor([count]))[0])

    def _summed(self, values: Tensor) -> list[float]:
        """The sums over all ranks."""
        return self._mesh.sum_over_clients(values.to(self._training.device)).tolist()

    def _log(self, row: dict[str, Any]) -> None:
        if self._mesh.is_main:
            files.append_jsonl(self._folder / "metrics.jsonl", row)
        self._training.track({k: v for k, v in row.items() if k != "step" and v is not None}, row["step"])

    def _save(self) -> None:
        self._training.average_buffers()
        with checkpoint_of_all(self._mesh, self._folder, "step", self.step) as temporary:
            self._training.save(temporary / "state")
            if self._mesh.is_main:
                position = self._pairs.position(self.step, self._settings.batch_size)
                facts = {"step": self.step, "steps": self.steps, **position, **self._training.facts()}
                files.write_json(temporary / "train_state.json", facts)

    def _resume(self) -> int:
        """Load the newest complete checkpoint, drop later metrics rows; returns the steps done."""
        found = newest_of_all(self._mesh, self._folder, "step")
        step = found[0] if found else 0
        if found:
            saved = files.read_json(found[1] / "train_state.json")
            if saved["steps"] != self.steps:
                raise UserError(
                    f"{found[1]}: a checkpoint of {saved['steps']} steps in all, these captions make {self.steps}; "
                    f"delete {self._folder}"
                )
            self._training.load(found[1] / "state", saved)
        if self._mesh.is_main:
            rows = [row for row in files.read_jsonl(self._folder / "metrics.jsonl") if row["step"] <= step]
            files.write_jsonl(self._folder / "metrics.jsonl", rows)
        return step


def _seed(device: torch.device, number: int) -> None:
    """Seed the device's generator and the CPU's. Without a GPU, `torch.manual_seed` takes a millisecond longer."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def _parameter_groups(task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels alone: none for biases, norms and the logit scale."""
    trainable = [parameter for parameter in task.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


class _NoProfile:
    def step(self) -> None:
        """There is nothing to record."""


def _profiled(trace: Path | None) -> Any:
    """A context around the loop: torch's profiler over a few steps, its trace written to `trace`; else nothing."""
    if trace is None:
        return nullcontext(_NoProfile())
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def write(profiler: Any) -> None:
        with files.published(trace) as temporary:
            profiler.export_chrome_trace(str(temporary))

    plan = schedule(wait=PROFILED.start - 1, warmup=1, active=PROFILED.stop - PROFILED.start, repeat=1)
    return profile(activities=activities, schedule=plan, on_trace_ready=write)
