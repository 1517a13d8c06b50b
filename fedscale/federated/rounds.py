"""Stage 2, whole: sample a cohort, train its clients, average, evaluate, save; resume after the last finished round."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedscale import checkpoints, files
from fedscale.config.schema import Config
from fedscale.data.build import ensure_shards
from fedscale.data.manifest import Manifest
from fedscale.data.partition import Partition, make_partition
from fedscale.data.store import ClientStore, open_store
from fedscale.device import pick_device
from fedscale.errors import Stopped, UserError
from fedscale.evaluation import Evaluation, evaluate
from fedscale.federated.aggregate import WeightedMean
from fedscale.federated.backends import LoopBackend
from fedscale.federated.cohort import by_steps, sample_cohort
from fedscale.federated.methods import METHODS, Method
from fedscale.models import initial_model, save_weights
from fedscale.runs import RunFolder
from fedscale.session import Session


def run(config: Config, run: RunFolder, session: Session) -> dict[str, Any]:
    """Federate for `federate.rounds` rounds and write `federate/model.safetensors` and `evaluation.json`.

    Raises UserError when the pretrained weights it should start from are missing, or when every client diverged;
    Stopped after a signal, with the last finished round saved.
    """
    folder = run.stage("federate")
    reporter = session.reporter
    device = pick_device(config)
    manifest = ensure_shards(config.data, reporter)
    train = open_store(manifest, "train", config.data.image_size, reporter, config.data.max_corrupt)
    judged = open_store(manifest, config.eval.split, config.data.image_size, reporter, config.data.max_corrupt)
    partition = _partition(config, train, folder, session)
    counts = np.bincount(train.labels, minlength=len(manifest.class_names)).tolist()

    method = METHODS[config.federate.method]()
    model = starting_model(config, manifest, run).to(device)
    # Copy-on-write pages of the store where it lies on the CPU, one copy on the GPU otherwise.
    images = torch.from_numpy(np.asarray(train.images)).to(device)
    labels = torch.from_numpy(np.asarray(train.labels)).to(device)
    backend = LoopBackend(model, images, labels, method, config)
    vector = backend.flat.vector.clone()
    finished, vector = _resume(folder, vector)
    if finished:
        reporter.say(f"federate: resuming after round {finished} of {config.federate.rounds}")
    rounds = config.federate.rounds
    evaluation: Evaluation | None = None
    diverged: list[str] = []

    with reporter.task("federate", rounds, "rounds") as task:
        task.advance(finished)
        for number in range(finished + 1, rounds + 1):
            began = time.perf_counter()
            vector, loss, lost = _one_round(config, method, backend, partition, vector, number)
            diverged += [f"client {client} in round {number}" for client in lost]
            row: dict[str, Any] = {"round": number, "loss": loss, "diverged": len(lost)}
            if number % config.eval.every == 0 or number == rounds:
                backend.flat.load(vector)
                evaluation = evaluate(model, judged, manifest.class_names, counts, config)
                row |= evaluation.scores()
            row["seconds"] = time.perf_counter() - began
            files.append_jsonl(folder / "metrics.jsonl", row)
            if number % config.federate.checkpoint_every == 0 or session.stop_requested:
                with checkpoints.checkpoint(folder, "round", number) as temporary:
                    save_file({"vector": vector.cpu()}, temporary / "state.safetensors")
            task.advance(note=f"all {evaluation.all:.1f}" if evaluation else "")
            if session.stop_requested and number < rounds:
                raise Stopped(f"federate: stopped after round {number} of {rounds}")

    backend.flat.load(vector)
    evaluation = evaluation or evaluate(model, judged, manifest.class_names, counts, config)
    save_weights(model, folder / "model.safetensors")
    files.write_json(folder / "evaluation.json", evaluation.to_dict())
    if diverged:
        reporter.say(f"federate: {len(diverged)} diverged client(s) left out of the mean: {', '.join(diverged[:5])}")
    return {"rounds": rounds, **evaluation.scores(), "partition": partition.note, "diverged": diverged}


def starting_model(config: Config, manifest: Manifest, run: RunFolder) -> nn.Module:
    """The model that round 1 starts from: the pretrained f, or the seed's own initial weights."""
    model = initial_model(config, len(manifest.class_names))
    if config.pretrain.enabled:
        path = run.stage("pretrain") / "export" / "model.safetensors"
        if not path.exists():
            raise UserError(f"{path}: no such file; run `fedscale pretrain` first, or set pretrain.enabled=false")
        model.load_state_dict(load_file(path))
    return model


def _one_round(
    config: Config, method: Method, backend: LoopBackend, partition: Partition, vector: Tensor, number: int
) -> tuple[Tensor, float, list[int]]:
    """The next global vector, the cohort's mean loss, and the clients that diverged (left out of the mean)."""
    sizes = [len(samples) for samples in partition.clients]
    cohort = sample_cohort(config.seed, number, len(sizes), config.federate.clients_per_round)
    trained = [client for client in by_steps(cohort, sizes) if sizes[client]]
    if not trained:
        return vector, 0.0, []
    mean, losses, lost = WeightedMean(vector), [], []
    for client in trained:
        result = backend.train(vector, client, partition.clients[client], number)
        if not result.finite:
            lost.append(client)
            continue
        mean.add(result.vector, method.weight(sizes[client]))
        losses.append(result.loss * sizes[client])
    if not losses:
        raise UserError(f"federate: every client of round {number} diverged; lower federate.lr={config.federate.lr}")
    loss = sum(losses) / sum(sizes[client] for client in trained if client not in lost)
    return method.server_step(vector, mean.mean(vector.dtype)), loss, lost


def _partition(config: Config, train: ClientStore, folder: Path, session: Session) -> Partition:
    classes = len(train.class_names)
    partition = make_partition(train.labels, classes, config.data.partition, config.seed, keys=train.keys)
    if partition.note:
        session.reporter.say(f"partition: {partition.note}")
    partition.save(folder / "partition.json", keys=train.keys)
    return partition


def _resume(folder: Path, vector: Tensor) -> tuple[int, Tensor]:
    """The last saved round and its vector (0 and the given one when there is none); later metrics rows are dropped."""
    found = checkpoints.newest(folder, "round")
    finished = found[0] if found else 0
    rows = [row for row in files.read_jsonl(folder / "metrics.jsonl") if row["round"] <= finished]
    files.write_jsonl(folder / "metrics.jsonl", rows)
    if found is None:
        return 0, vector
    saved = load_file(found[1] / "state.safetensors")["vector"]
    return finished, saved.to(vector)
