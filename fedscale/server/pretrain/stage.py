"""Stage 1b: pretrain the compact model f on the captioned pool, beside CLIP and in front of a language model.

Through Accelerate: the launch config chooses the strategy. Teachers, loader and schedules stay outside `prepare`
(PITFALLS D 29, 32, 33). What leaves the stage is the weights of f alone.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedscale import checkpoints, files
from fedscale.config.schema import Config
from fedscale.data.augment import augment, normalise
from fedscale.data.build import ensure_shards
from fedscale.data.manifest import Manifest
from fedscale.data.open_pool import open_pool
from fedscale.device import pick_device
from fedscale.distributed.accelerator import any_rank, make_accelerator
from fedscale.distributed.state import load_state, save_state
from fedscale.errors import Stopped, UserError
from fedscale.models import Classifier, initial_model, save_weights
from fedscale.models.chat import chat_text
from fedscale.models.clip import load_clip
from fedscale.models.mllm import load_mllm
from fedscale.progress import Task
from fedscale.rng import derive, torch_generator
from fedscale.runs import RunFolder
from fedscale.server.caption.prompts import of_kind
from fedscale.server.pretrain.data import Batch, PairStream
from fedscale.server.pretrain.probe import run_probe
from fedscale.server.pretrain.schedule import alpha_at, lr_at
from fedscale.server.pretrain.task import Distillation
from fedscale.server.pretrain.text import TextEncoder, Tokens
from fedscale.session import Session

METRIC_ROWS = 500  # at most about so many rows in metrics.jsonl


def run(config: Config, run: RunFolder, session: Session) -> dict[str, Any]:
    """Pretrain for `pretrain.epochs` passes; writes `pretrain/export/model.safetensors`, metrics, the probe's figures.

    Raises UserError when the pool is not captioned, a teacher cannot be loaded or the loss is not finite; Stopped after
    a signal, with the state saved.
    """
    folder = run.stage("pretrain")
    manifest = ensure_shards(config.data, session.reporter)
    pairs = PairStream(config, open_pool(config.data, session.reporter), run)
    if pairs.num_skipped:
        session.reporter.say(f"pretrain: {pairs.num_skipped} captioned images are left out ({pairs.skipped})")
    trainer = Trainer(config, manifest, pairs, folder)
    started_at = trainer.step
    if started_at:
        session.reporter.say(f"pretrain: resuming after step {started_at} of {trainer.steps}")
    began = time.perf_counter()
    with session.reporter.task("pretrain", trainer.steps, "steps") as task:
        task.advance(started_at)
        trainer.train(session, task)
    seconds = time.perf_counter() - began
    student = trainer.student()
    save_weights(student, folder / "export" / "model.safetensors")
    trained = (trainer.steps - started_at) * config.pretrain.batch_size
    return {
        "steps": trainer.steps,
        "images": pairs.num_pairs,
        "skipped": pairs.num_skipped,
        "trainable_parameters": trainer.num_trainable,
        "images_per_second": trained / seconds if trained else None,
        **trainer.last_losses(),
        "probe": run_probe(config, manifest, student, folder, session) if config.pretrain.probe.enabled else [],
    }


class Trainer:
    """Everything that a step needs, resumed from the newest complete checkpoint of `folder`."""

    def __init__(self, config: Config, manifest: Manifest, pairs: PairStream, folder: Path) -> None:
        settings = config.pretrain
        if settings.contrastive_weight > 0 and "description" not in config.caption.kinds:
            raise UserError("pretrain.contrastive_weight is above 0: caption.kinds must hold description")
        self._config, self._settings, self._folder, self._pairs = config, settings, folder, pairs
        self.steps = max(1, settings.epochs * pairs.num_pairs // settings.batch_size)
        device = pick_device(config)
        self._accelerator = make_accelerator(device, settings.mixed_precision)
        live = settings.teacher == "live"
        self._clip = load_clip(config.teachers.clip, self._accelerator.device) if live else None
        language_model, self._encoder = _language_side(config, self._accelerator.device)
        # Kept from before `prepare`: accelerate's unwrap_model would import deepspeed, which takes seconds.
        self._student = initial_model(config, len(manifest.class_names))
        torch.manual_seed(derive(config.seed, "pretrain heads"))
        embed_dim = self._clip.embed_dim if self._clip else pairs.embed_dim()
        task = Distillation(self._student, language_model, embed_dim, settings)
        self.num_trainable = sum(p.numel() for p in task.parameters() if p.requires_grad)
        optimizer = torch.optim.AdamW(_parameter_groups(task, settings.weight_decay), lr=settings.lr)
        self._task, self._optimizer = self._accelerator.prepare(task, optimizer)
        self.step = self._resume()

    def train(self, session: Session, progress: Task) -> None:
        """Train to the last step. Raises Stopped after a signal, with the state saved."""
        accelerator, settings = self._accelerator, self._settings
        batches = self._pairs.batches(
            self.step, settings.batch_size, accelerator.process_index, accelerator.num_processes
        )
        self._task.train()
        while self.step < self.steps:
            began = time.perf_counter()
            row = self._one_step(next(batches))
            row["images_per_second"] = settings.batch_size / (time.perf_counter() - began)
            self.step += 1
            if self.step % max(1, self.steps // METRIC_ROWS) == 0 or self.step == self.steps:
                self._log(row)
            stop = any_rank(accelerator, session.stop_requested)
            if self.step % settings.save_every == 0 or self.step == self.steps or stop:
                self._save()
            progress.advance(note=f"loss {row['loss']:.3f}")
            if stop and self.step < self.steps:
                raise Stopped(f"pretrain: stopped after step {self.step} of {self.steps}")

    def student(self) -> Classifier:
        """f as trained, in evaluation mode."""
        return self._student.eval()

    def last_losses(self) -> dict[str, float]:
        """The losses of the last logged step, by name."""
        rows = files.read_jsonl(self._folder / "metrics.jsonl")
        return {name: rows[-1][name] for name in ("loss", "lm", "feature", "contrastive") if rows and name in rows[-1]}

    def _one_step(self, batch: Batch) -> dict[str, Any]:
        """One optimiser step; returns its metrics row."""
        config, settings, device, step = self._config, self._settings, self._accelerator.device, self.step
        alpha = alpha_at(step, self.steps, settings.alpha)
        lr = lr_at(step, self.steps, settings.lr, settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(derive(config.seed, "dropout", step))  # no generator state has to be saved
        images = batch.images.to(device)
        draws = torch_generator(config.seed, "pretrain augment", step)
        kind = "none" if batch.augmented else settings.augment
        augmented = normalise(augment(images, kind, draws), config.data.mean, config.data.std)
        seen, read = self._taught(images, batch)
        tokens = self._encoder.encode(batch.dialogues)
        tokens = Tokens(tokens.ids.to(device), tokens.labels.to(device))
        losses: dict[str, Tensor] = self._task(augmented, seen, tokens, alpha, read)
        values = {name: loss.item() for name, loss in losses.items()}
        if not all(map(math.isfinite, values.values())):
            raise UserError(
                f"pretrain: the loss is not finite at step {step + 1} ({values}); lower pretrain.lr={settings.lr}, "
                "or use pretrain.mixed_precision=no"
            )
        self._accelerator.backward(losses["loss"])
        if settings.clip_grad_norm > 0:
            self._accelerator.clip_grad_norm_(self._task.parameters(), settings.clip_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"step": step + 1, **values, "alpha": alpha, "lr": lr}

    def _taught(self, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The teacher's embeddings of the images and, where the contrastive loss asks for them, of the descriptions."""
        contrastive = self._settings.contrastive_weight > 0
        if self._clip is None:
            assert batch.seen is not None and batch.read is not None, "the stream gives what the store holds"
            return batch.seen.to(images.device), batch.read.to(images.device) if contrastive else None
        # Cloned, because the teacher gives inference tensors, of which autograd may save none.
        read = self._clip.encode_texts(batch.descriptions).clone() if contrastive else None
        return self._clip.encode_images(images).clone(), read

    def _log(self, row: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            files.append_jsonl(self._folder / "metrics.jsonl", row)

    def _save(self) -> None:
        with checkpoints.checkpoint(self._folder, "step", self.step) as temporary:
            save_state(temporary / "state", self._task, self._optimizer.optimizer)
            samples = self.step * self._settings.batch_size
            files.write_json(
                temporary / "train_state.json", {"step": self.step, "steps": self.steps, "samples_seen": samples}
            )

    def _resume(self) -> int:
        """Load the newest complete checkpoint, drop later metrics rows; returns the steps done."""
        found = checkpoints.newest(self._folder, "step")
        step = found[0] if found else 0
        if found:
            steps = files.read_json(found[1] / "train_state.json")["steps"]
            if steps != self.steps:
                raise UserError(
                    f"{found[1]}: a checkpoint of {steps} steps in all, these captions make {self.steps}; "
                    f"delete {self._folder}"
                )
            load_state(found[1] / "state", self._task, self._optimizer.optimizer)
        rows = [row for row in files.read_jsonl(self._folder / "metrics.jsonl") if row["step"] <= step]
        files.write_jsonl(self._folder / "metrics.jsonl", rows)
        return step


def _language_side(config: Config, device: torch.device) -> tuple[Any, TextEncoder]:
    """The MLLM's language model, and the encoder that writes prompts in its chat form."""
    mllm = load_mllm(config.teachers.mllm, device)
    language_model, tokenizer = mllm.language_model()
    encoder = TextEncoder(
        tokenizer,
        partial(chat_text, mllm.processor, with_image=False),  # of the MLLM, only its language model is kept
        config.pretrain.max_text_tokens,
    )
    encoder.check(turns[0] for kind in config.caption.kinds for turns in of_kind(config.caption.prompts, kind))
    return language_model, encoder


def _parameter_groups(task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels alone: none for biases, norms and the logit scale."""
    trainable = [parameter for parameter in task.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
