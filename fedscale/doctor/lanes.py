"""Memory for clients that train side by side: what lanes take for sure, activations aside."""

from __future__ import annotations

import torch

from fedscale.config import Config
from fedscale.data import manifest as manifests
from fedscale.data.build import shard_folder
from fedscale.data.manifest import Manifest
from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient
from fedscale.stages import children

CHECK = "memory for lanes"
FLOAT32 = 4  # bytes; clients' weights are that, whatever `federate.precision`


def lanes(patient: Patient) -> Finding:
    """The largest run's lane against the free memory of which it may take `federate.memory`. Builds no weights."""
    from fedscale.federated.backends.memory import free_bytes

    runs = [run for run in children(patient.config) if run.federate.rounds and run.federate.shard == 1]
    if not runs:
        return Finding(CHECK, Gravity.UNCHECKED, "no run trains whole models in stage 2")
    if (classes := _classes(patient.config)) is None:
        told = "unknown before the shards are built: the number of classes is part of the model"
        return Finding(CHECK, Gravity.UNCHECKED, told, "`fedscale prepare CONFIG`, or data.classes=")
    sizes = {_bytes(run, classes): run for run in runs}
    each, run = max(sizes.items(), key=lambda item: item[0] * max(1, item[1].federate.lanes))
    settings, free = run.federate, free_bytes(patient.device)
    allowed = int(free * settings.memory)
    fits = allowed // each
    facts = {"lane_bytes": each, "free_bytes": free, "allowed_bytes": allowed, "lanes_that_fit": fits}
    told = f"{each / 2**20:,.1f} MiB a lane and activations; {fits:,} lanes fit {settings.memory:.0%} of what is free"
    wanted = max(1, settings.lanes) if settings.backend in ("batched", "graph") else 1
    if wanted > fits:
        remedy = f"at most federate.lanes={max(1, fits)}, or raise federate.memory"
        return Finding(CHECK, Gravity.MISTAKE, f"federate.lanes={wanted}: {told}", remedy, facts)
    return Finding(CHECK, Gravity.FINE, told, facts=facts)


def _bytes(run: Config, classes: int) -> int:
    """Bytes of one lane, by the model's shapes alone."""
    from fedscale.federated.backends.memory import lane_bytes
    from fedscale.federated.fit import problem_of
    from fedscale.federated.flat import FlatLayout
    from fedscale.federated.methods import make_method
    from fedscale.models import build_model

    with torch.device("meta"):
        model = build_model(run.model, classes, run.data.image_size)
        size = run.data.image_size
        problem = problem_of(model, (3, size, size), run.data.partition.clients)
    method = make_method(run.federate, problem)
    return lane_bytes(FlatLayout.of(model), method, run.federate, FLOAT32)


def _classes(config: Config) -> int | None:
    data = config.data
    folder = shard_folder(data)
    if (folder / manifests.FILE).exists():
        return len(Manifest.load(folder).class_names)
    return data.classes or len(data.class_names) or None
