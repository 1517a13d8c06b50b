"""What a round leaves to go on from: the global vector, the server's vectors, where clients' rows lie.

Nothing in it depends on how many ranks wrote it, so any number of them can go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedscale import checkpoints, files
from fedscale.distributed.mesh import Mesh
from fedscale.errors import UserError
from fedscale.federated.engine import Engine
from fedscale.models import save_tensors

PREFIX = "round"


def save_round(folder: Path, number: int, engine: Engine) -> None:
    """Publish `round_<number>/`; every rank must call it, the main one writes."""
    server = {f"server.{name}": engine.server.whole(name) for name in engine.method.server_state}
    shared = {f"shared.{name}": value for name, value in engine.server.shared.items()}
    vector = engine.host.whole_of(engine.server.vector)
    server = {name: engine.host.whole_of(value) for name, value in server.items()}
    if engine.states:
        engine.states.flush()
        engine.mesh.barrier(f"the checkpoint of round {number}")  # no table before the rows that it names
    tables = engine.mesh.gather_objects(engine.states.checkpoint())[: engine.mesh.shard] if engine.states else None
    if engine.mesh.is_main:
        with checkpoints.checkpoint(folder, PREFIX, number) as temporary:
            kept = {"kept": engine.kept} if engine.method.keeps else {}
            save_tensors({"vector": vector, **server, **shared, **kept}, temporary / "state.safetensors")
            files.write_json(temporary / "round.json", {"round": number, "layout": engine.host.whole_layout.describe()})
            if tables:  # one for each slice of the model
                files.write_json(temporary / "clients.json", tables)
    engine.mesh.barrier(f"the checkpoint of round {number}")
    if engine.states:
        engine.states.kept(kept_tables(folder, engine.mesh))
        if engine.mesh.client_index == 0:
            engine.states.collect_garbage()


def newest_round(folder: Path, layout: dict[str, list[int]]) -> tuple[int, dict[str, Tensor]] | None:
    """Number and vectors (full, on the CPU) of the newest checkpoint.

    Raises UserError, naming what differs, for one of another model.
    """
    found = checkpoints.newest(folder, PREFIX)
    if found is None:
        return None
    number, path = found
    saved = files.read_json(path / "round.json").get("layout", {})
    if saved != layout:
        differing = [
            f"{name} was {saved.get(name, 'absent')}, is {layout.get(name, 'absent')}"
            for name in sorted({*saved, *layout})
            if saved.get(name) != layout.get(name)
        ]
        raise UserError(
            f"{path}: a checkpoint of another model ({'; '.join(differing[:3]) or 'tensors in another order'}); "
            "choose another name= or out=, or delete the folder"
        )
    return number, load_file(path / "state.safetensors")


def restore(engine: Engine, vectors: dict[str, Tensor]) -> None:
    """Put a checkpoint's vectors into the engine. Raises UserError where one is missing or of another size."""
    engine.server.vector = engine.host.slice_of(_vector(vectors, "vector", engine.host.whole_layout.size)).to(
        engine.server.vector
    )
    for name in engine.method.server_state:
        whole = _vector(vectors, f"server.{name}", engine.host.whole_layout.num_parameters)
        engine.server.set_whole(name, engine.host.slice_of(whole))
    for name, tensor in engine.server.shared.items():
        tensor.copy_(_vector(vectors, f"shared.{name}", *tensor.shape))
    if engine.method.keeps:
        engine.kept.copy_(_vector(vectors, "kept", *engine.kept.shape))


def newest_table(folder: Path, mesh: Mesh) -> dict[str, Any] | None:
    """Where clients' rows of this rank's slice lie, by the newest checkpoint."""
    found = checkpoints.newest(folder, PREFIX)
    return _table(found[1], mesh) if found else None


def kept_tables(folder: Path, mesh: Mesh) -> list[dict[str, Any]]:
    """The tables of all complete checkpoints that are kept."""
    complete = [path for path in folder.glob(f"{PREFIX}_*") if (path / checkpoints.MARKER).exists()]
    return [table for path in complete if (table := _table(path, mesh)) is not None]


def _table(path: Path, mesh: Mesh) -> dict[str, Any] | None:
    if not (path / "clients.json").exists():
        return None
    tables = files.read_json(path / "clients.json")
    if len(tables) != mesh.shard:
        raise UserError(
            f"federate.shard={mesh.shard}: the clients' state in {path} is cut into {len(tables)} slices; "
            f"resume with federate.shard={len(tables)}"
        )
    return tables[mesh.shard_index]


def _vector(vectors: dict[str, Tensor], name: str, *shape: int) -> Tensor:
    if name not in vectors or vectors[name].shape != torch.Size(shape):
        found = list(vectors[name].shape) if name in vectors else "nothing"
        raise UserError(
            f"federate: the checkpoint's {name} is {found}, expected {list(shape)}; delete federate/round_*"
        )
    return vectors[name]
