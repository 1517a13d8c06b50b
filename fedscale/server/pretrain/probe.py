"""The data-fraction figure: what pretraining is worth when only a few labelled images are there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.augment import augment, normalise
from fedscale.data.manifest import Manifest
from fedscale.data.store import ClientStore, open_store
from fedscale.errors import Stopped
from fedscale.evaluation import predict
from fedscale.models import initial_model
from fedscale.rng import numpy_generator, torch_generator
from fedscale.server.pretrain.schedule import lr_at
from fedscale.session import Session

MOMENTUM = 0.9


def run_probe(
    config: Config, manifest: Manifest, pretrained: nn.Module, folder: Path, session: Session
) -> list[dict[str, Any]]:
    """Train f from its pretrained and from its random weights on class-stratified fractions of the training images.

    Same images, batches, augmentation and number of steps for both. Writes `probe.json` and returns its rows:
    {fraction, images, scratch, pretrained}, accuracies in percent on the test split. Raises Stopped after a signal.
    """
    probe, data = config.pretrain.probe, config.data
    train = open_store(manifest, "train", data.image_size, session.reporter, data.max_corrupt)
    test = open_store(manifest, "test", data.image_size, session.reporter, data.max_corrupt)
    scratch = initial_model(config, len(manifest.class_names)).to(next(pretrained.parameters()).device)
    rows = []
    with session.reporter.task("probe", 2 * len(probe.fractions), "models") as task:
        for fraction in probe.fractions:
            chosen = stratified(train.labels, fraction, config.seed)
            row: dict[str, Any] = {"fraction": fraction, "images": len(chosen)}
            for name, start in (("scratch", scratch), ("pretrained", pretrained)):
                if session.stop_requested:
                    raise Stopped("probe: stopped; the pretrained model is saved, the probe will be done again")
                row[name] = _accuracy(config, start, train, chosen, test)
                task.advance(note=f"{name} {row[name]:.1f}%")
            rows.append(row)
    files.write_json(folder / "probe.json", rows)
    return rows


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sorted indices of the same share of each class, at least one image of every class that has any."""
    labels = np.asarray(labels)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        take = max(1, round(fraction * len(members)))
        chosen.append(numpy_generator(seed, "probe", int(label)).permutation(members)[:take])
    return np.sort(np.concatenate(chosen))


def _accuracy(config: Config, start: nn.Module, train: ClientStore, chosen: np.ndarray, test: ClientStore) -> float:
    """Test accuracy in percent after `pretrain.probe.steps` steps of SGD on the chosen images, from `start` on."""
    probe, data, seed = config.pretrain.probe, config.data, config.seed
    model = copy.deepcopy(start).requires_grad_(True).train()
    device = next(model.parameters()).device
    images = torch.from_numpy(np.array(train.images[chosen])).to(device)
    labels = torch.from_numpy(np.array(train.labels[chosen])).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=probe.lr, momentum=MOMENTUM)
    for step in range(probe.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, probe.steps, probe.lr, warmup=0.0)
        picked = numpy_generator(seed, "probe batch", len(chosen), step).integers(len(chosen), size=probe.batch_size)
        batch = torch.from_numpy(picked).to(device)
        draws = torch_generator(seed, "probe augment", len(chosen), step)
        shown = normalise(augment(images[batch], config.pretrain.augment, draws), data.mean, data.std)
        loss = F.cross_entropy(model(shown), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = predict(model, test.images, config)[0].numpy()
    return float(100.0 * np.mean(found == np.asarray(test.labels)))
