"""The training loop of stage 3: balanced batches, SGD with a cosine learning rate, through Accelerate.

Batch norm is in training mode, so that its running statistics move to the balanced set. Tried on a model trained on
long-tailed `shapes` (imbalance 50; 40 images a class): with its own statistics kept, accuracy fell to chance from lr
0.01 on (two seeds). Statistics taken anew from the set afterwards changed little (three seeds, lr 0.03, All: 37.6
against 36.9 after 5 epochs, 58.0 against 59.3 after 15), so that this pass is left out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.augment import augment, normalise
from fedscale.data.balance import drawn_evenly
from fedscale.device import pick_device
from fedscale.distributed.accelerator import any_rank, make_accelerator
from fedscale.errors import Stopped, UserError
from fedscale.rng import numpy_generator, torch_generator
from fedscale.server.align.draw import AlignmentSet
from fedscale.server.align.loss import alignment_loss
from fedscale.session import Session

if TYPE_CHECKING:
    from accelerate import Accelerator

MEANS = ("loss", "ce", "kl", "accuracy")  # of a metrics row; the accuracy is in percent, of y on augmented images


def balanced_batches(
    labels: np.ndarray, num_classes: int, per_class: int, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """An epoch's batches of indices: `per_class` draws of each class, in a random order of (seed, epoch).

    Within a batch the classes' counts differ by at most one, and so do the batches' sizes. A class with fewer images
    than `per_class` goes through them again, each as often as the others, give or take one.
    """
    draws = numpy_generator(seed, "align order", epoch)
    columns = [
        drawn_evenly(np.flatnonzero(labels == label), per_class, draws) for label in draws.permutation(num_classes)
    ]
    # Taken row by row the classes take turns, so that any stretch of the order is as even as it can be.
    order = np.stack(columns, axis=1).reshape(-1)
    return np.array_split(order, math.ceil(len(order) / batch_size))


def cosine_lr(step: int, steps: int, peak: float) -> float:
    """Half a cosine from `peak` at step 0 to 0 at step `steps`."""
    return peak * (1 + math.cos(math.pi * step / steps)) / 2


def train(
    model: nn.Module, data: AlignmentSet, num_classes: int, config: Config, folder: Path, session: Session
) -> nn.Module:
    """Train `model` on the set for `align.epochs` epochs, a metrics row each; returns it, in evaluation mode.

    Raises UserError when the loss is not finite, Stopped after a signal (nothing is kept: the stage is short).
    """
    settings = config.align
    accelerator = make_accelerator(pick_device(config), "no")
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    trained = model  # kept: accelerate's unwrap_model would import deepspeed, which takes seconds
    model, optimizer = accelerator.prepare(model, optimizer)
    epochs = [
        balanced_batches(data.labels, num_classes, settings.images_per_class, settings.batch_size, config.seed, epoch)
        for epoch in range(settings.epochs)
    ]
    steps, step = sum(map(len, epochs)), 0
    smallest, world = min(map(len, epochs[0])), accelerator.num_processes
    if smallest < world:
        raise UserError(
            f"align.batch_size={settings.batch_size}: makes batches of {smallest}, fewer than {world} processes"
        )
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    model.train()
    with session.reporter.task("align", steps, "steps") as task:
        for epoch, batches in enumerate(epochs, start=1):
            sums = torch.zeros(len(MEANS), device=accelerator.device)
            for batch in batches:
                if any_rank(accelerator, session.stop_requested):
                    raise Stopped(f"align: stopped in epoch {epoch} of {settings.epochs}; the stage starts anew")
                lr = cosine_lr(step, steps, settings.lr)
                sums += _one_step(accelerator, model, optimizer, data, batch, config, step, lr)
                step += 1
                task.advance()
            images = sum(map(len, batches))
            means = dict(zip(MEANS, (accelerator.reduce(sums, "sum") / images).tolist(), strict=True))
            if not math.isfinite(means["loss"]):
                raise UserError(f"align: the loss is {means['loss']} in epoch {epoch}; lower align.lr={settings.lr}")
            if accelerator.is_main_process:
                files.append_jsonl(folder / "metrics.jsonl", {"epoch": epoch, **means, "lr": lr})
            task.advance(0, note=f"loss {means['loss']:.3f}")
    return trained.eval()


def _one_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: AlignmentSet,
    batch: np.ndarray,
    config: Config,
    step: int,
    lr: float,
) -> Tensor:
    """One optimiser step on this rank's part of the batch; returns the part's sums of MEANS."""
    settings, device = config.align, accelerator.device
    rank, world = accelerator.process_index, accelerator.num_processes
    for group in optimizer.param_groups:
        group["lr"] = lr
    # Every rank augments the whole batch, so that the draws do not depend on the world's size.
    draws = torch_generator(config.seed, "align augment", step)
    images = augment(torch.from_numpy(data.images[batch]), settings.augment, draws)[rank::world].to(device)
    own = torch.from_numpy(batch[rank::world])
    labels = torch.from_numpy(data.labels)[own].to(device)
    logits = model(normalise(images, config.data.mean, config.data.std))
    teacher_logits = data.teacher_logits[own].to(device)
    loss = alignment_loss(logits, teacher_logits, labels, settings.beta, settings.temperature)
    # Gradients are averaged over the ranks; with this weight that is the mean over the batch, also of uneven parts.
    accelerator.backward(loss.total * (len(own) * world / len(batch)))
    optimizer.step()
    optimizer.zero_grad()
    right = 100.0 * (logits.argmax(1) == labels).float().mean()
    return torch.stack([loss.total, loss.ce, loss.kl, right]).detach() * len(own)
