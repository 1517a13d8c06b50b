"""From a config to an engine: the data on its device, the backend, the clients' state, and what is recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedscale import files
from fedscale.config.schema import Config, FederateConfig
from fedscale.data.store import ClientStore
from fedscale.device import device_name, keep_freed_memory
from fedscale.distributed.mesh import Mesh
from fedscale.errors import UserError
from fedscale.federated.backends import Backend, RoundStart, Trained
from fedscale.federated.backends.choose import Choice, cached_choice, choose, described
from fedscale.federated.backends.memory import free_bytes
from fedscale.federated.backends.trainer import row_size
from fedscale.federated.backends.trials import Rehearsal
from fedscale.federated.backends.workshop import Workshop
from fedscale.federated.central import Central
from fedscale.federated.checkpoint import kept_tables, newest_table
from fedscale.federated.client_state import ClientStates, next_launch
from fedscale.federated.data import RoundData
from fedscale.federated.engine import Engine
from fedscale.federated.fit import check_fit, check_last_batches, problem_of
from fedscale.federated.flat import FlatLayout, FlatModel, ModelHost
from fedscale.federated.methods import Method, make_method
from fedscale.federated.plan import local_steps
from fedscale.federated.pool import Pool
from fedscale.federated.server import ServerState

RECORD = "backend.json"
PINNED = ("torch", "device", "threads")  # what exact mode's bits depend on beside the config


def build_engine(
    config: Config,
    model: nn.Module,
    data: RoundData,
    clients: Sequence[np.ndarray],
    mesh: Mesh,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    pool: Pool | None = None,
    teacher: Mapping[str, torch.Tensor] | None = None,
) -> Engine:
    """The engine that trains `model` (moved to the mesh's device) on the clients' rows of `data`.

    `folder` keeps what is recorded; `pool` and `teacher` are for methods that ask for them. Raises UserError for lanes
    that do not fit, for a method that cannot train this model, and for a run that was begun on other software in exact
    mode.
    """
    settings = config.federate
    model = model if settings.shard > 1 else model.to(mesh.device)  # before it is asked how much memory is free there
    method = make_method(settings, problem_of(model, data.image_shape, len(clients)))
    check_fit(method, model, settings, data, teacher or {})
    check_last_batches(model, [len(rows) for rows in clients], settings.batch_size, data.image_shape)
    if mesh.device.type == "cpu":
        keep_freed_memory()
    if settings.precision != "fp32" and mesh.device.type == "cpu":
        say(f"federate.precision={settings.precision}: on a CPU clients train in fp32")
    parts = _Parts(config, model, data, clients, mesh, method, folder, say, pool, teacher or {})
    engine = _sharded_engine(parts) if settings.shard > 1 else _whole_engine(parts)
    if method.client_state:
        assert folder is not None, f"{method.name} keeps client state; it needs a folder"
        engine.states = _client_states(engine, folder, say)
    return engine


@dataclass(frozen=True)
class _Parts:
    """What both kinds of engines are made from."""

    config: Config
    model: nn.Module
    data: RoundData
    clients: Sequence[np.ndarray]
    mesh: Mesh
    method: Method
    folder: Path | None
    say: Callable[[str], None]
    pool: Pool | None
    teacher: Mapping[str, torch.Tensor]

    def engine(self, backend: Backend | None, host: ModelHost, server: ServerState) -> Engine:
        """The engine; a backend that is yet to be chosen by trials with the engine itself may be missing."""
        central = Central(self.config, self.method, host, server, self.mesh, self.pool, self.teacher)
        return Engine(self.config, self.method, backend, self.data, self.clients, host, server, self.mesh, central)  # type: ignore[arg-type]


def _whole_engine(parts: _Parts) -> Engine:
    """Each rank holds whole models; the backend is the config's, or chosen by trial on the main rank."""
    settings, method, mesh = parts.config.federate, parts.method, parts.mesh
    flat = FlatModel(parts.model)
    held = [len(rows) for rows in parts.clients]
    most = -(-min(settings.clients_per_round, len(held)) // mesh.clients)  # more would leave a rank without any
    workshop = Workshop(flat.model, flat.layout, flat.vector, method, settings, parts.data, most, parts.say)
    server = ServerState(flat.layout, method, mesh, flat.vector.clone())
    engine = parts.engine(None, flat, server)
    choice = mesh.broadcast_object(_choice(engine, workshop, held, parts.folder) if mesh.is_main else None)
    engine.backend = workshop.make(choice.backend, choice.lanes)
    parts.say(described(choice))
    return engine


def _sharded_engine(parts: _Parts) -> Engine:
    """Each rank holds its slice of a client's model, cut by FSDP2."""
    from fedscale.federated.sharded import ShardedBackend, ShardedModel  # only here: FSDP2 takes a second to import

    settings, model, method, mesh = parts.config.federate, parts.model, parts.method, parts.mesh
    layout = FlatLayout.of(model)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        whole = torch.zeros(layout.size, dtype=next(model.parameters()).dtype)
        for name, view in layout.views(whole).items():
            view.copy_(state[name])
    if mesh.is_main and _recorded(settings, mesh.device, parts.folder) is None:
        _record(Choice("sharded", 1, {}), settings, mesh.device, parts.folder)
    sharded = ShardedModel(model, mesh)
    vector = sharded.slice_of(whole).to(mesh.device)
    backend = ShardedBackend(sharded, vector, method, settings, parts.data)
    server = ServerState(sharded.layout, method, mesh, vector)
    parts.say(
        f"federate: a client's model on {mesh.shard} ranks, {sharded.num_bytes / 2**20:.1f} MiB of parameters each, "
        f"{mesh.clients} clients at once"
    )
    return parts.engine(backend, sharded, server)


def _choice(engine: Engine, workshop: Workshop, held: list[int], folder: Path | None) -> Choice:
    """The backend of this run: as chosen before, as pinned by the config, or by trial."""
    settings, device = workshop.settings, workshop.like.device
    if found := _recorded(settings, device, folder):
        return found
    if settings.backend == "loop" or not settings.rounds:
        choice = Choice("loop", 1, {})
    elif settings.backend != "auto" and settings.lanes:
        choice = Choice(settings.backend, settings.lanes, {})
    else:
        steps = sum(local_steps(size, settings.batch_size, settings.local_epochs) for size in held if size) / len(held)
        total = steps * settings.rounds * settings.clients_per_round / engine.mesh.clients
        choice = cached_choice(workshop, lambda: choose(workshop, _rehearsal(engine, held), total))
    _record(choice, settings, device, folder)
    return choice


def _facts(settings: FederateConfig, device: torch.device) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "exact": settings.aggregate.exact,
    }


def _record(choice: Choice, settings: FederateConfig, device: torch.device, folder: Path | None) -> None:
    if folder:
        files.write_json(folder / RECORD, asdict(choice) | _facts(settings, device))


def _recorded(settings: FederateConfig, device: torch.device, folder: Path | None) -> Choice | None:
    """What the run began with. Raises UserError in exact mode when it was with other arithmetic."""
    if folder is None or not (folder / RECORD).exists():
        return None
    saved, facts = files.read_json(folder / RECORD), _facts(settings, device)
    differing = [f"{name} was {saved.get(name)}, is {facts[name]}" for name in PINNED if saved.get(name) != facts[name]]
    if differing and settings.aggregate.exact:
        raise UserError(
            f"{folder / RECORD}: begun with other arithmetic ({'; '.join(differing)}), which federate.aggregate.exact "
            "does not admit; resume it as it was begun, or choose another name="
        )
    return Choice(saved["backend"], saved["lanes"], saved["seconds"])


def _rehearsal(engine: Engine, held: list[int]) -> Rehearsal:
    """Round 1's clients and sum, for trials."""
    cohort, start = engine.cohort(1) or [int(np.argmax(held))], _trial_start(engine)
    total, share = engine.fresh_sum(0), 1 / len(cohort)

    def absorb(trained: Trained) -> None:
        weights = torch.full((trained.plan.lanes,), share, dtype=torch.float64)
        total.add(trained, start.vector, weights, share)

    return Rehearsal(cohort, lambda clients: engine.plan(1, clients), absorb, start, engine.server.vector.device)


def _trial_start(engine: Engine) -> RoundStart:
    class Zeros:
        def read(self, client: int, role: str, out: torch.Tensor) -> bool:
            out.zero_()
            return False

    vector, shared = engine.server.vector.clone(), engine.server.shared
    pool = engine.central.pool.images if engine.central.pool else None
    return RoundStart(
        vector, engine.server.broadcast_zeros(), Zeros(), shared=shared, model=lambda: engine.host.model, pool=pool
    )


def _client_states(engine: Engine, folder: Path, say: Callable[[str], None]) -> ClientStates:
    mesh, settings = engine.mesh, engine.config.federate
    where = folder / "clients" if mesh.shard == 1 else folder / "clients" / f"{mesh.shard_index}-of-{mesh.shard}"
    launch = max(mesh.gather_objects(next_launch(where)))
    states = ClientStates(
        where,
        engine.method.client_state,
        len(engine.clients),
        row_size(engine.method, engine.layout),
        engine.server.vector.dtype,
        launch,
        mesh.client_index,
        newest_table(folder, mesh),
    )
    states.kept(kept_tables(folder, mesh))
    mesh.barrier("the clients' state")
    if mesh.client_index == 0:
        states.collect_garbage()
    most = states.expected_bytes(settings.clients_per_round, settings.checkpoint_every)
    say(
        f"federate: {engine.method.name} keeps {', '.join(engine.method.client_state)} of {len(engine.clients):,} "
        f"clients in {where}: {most / 2**30:.2f} GiB at most"
    )
    return states


def open_round_data(config: Config, store: ClientStore, device: torch.device, say: Callable[[str], None]) -> RoundData:
    """The store's images for rounds: on the device where they fit, else staged group by group.

    Raises UserError when `federate.store=resident` does not fit.
    """
    settings, data = config.federate, config.data
    images = np.asarray(store.images)
    resident = settings.store != "mapped"
    if resident and device.type == "cuda":
        free = free_bytes(device) * settings.memory
        if images.nbytes > free:
            if settings.store == "resident":
                raise UserError(
                    f"federate.store=resident: the images take {images.nbytes / 2**30:.1f} GiB, expected at most "
                    f"{free / 2**30:.1f} GiB (federate.memory={settings.memory}); use federate.store=mapped"
                )
            say(f"federate: {images.nbytes / 2**30:.1f} GiB of images stay on disk and are staged group by group")
            resident = False
    return RoundData(images, store.labels, device, data.mean, data.std, settings.augment, resident)


def pinned_arithmetic(config: Config, device: torch.device) -> ExitStack:
    """Within the context torch computes as `federate.precision` and `federate.aggregate.exact` say."""
    stack, settings = ExitStack(), config.federate
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        tf32 = settings.precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

        def restore() -> None:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

        stack.callback(restore)
    if settings.aggregate.exact:
        stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        torch.use_deterministic_algorithms(True)
    return stack
