"""A client's local training as a plain loop over torch modules, and engines of every backend and form to hold to it."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedscale.distributed.mesh import Mesh
from fedscale.federated.backends import BatchedBackend, LaneTrainer
from fedscale.federated.checkpoint import newest_round, restore, save_round
from fedscale.federated.cohort import by_steps
from fedscale.federated.engine import Engine
from fedscale.federated.lanes.check import checked
from fedscale.federated.lanes.convert import VmapForm
from fedscale.federated.pool import Pool
from tests.federated.engine_support import SIZES, make_engine, settings, trained

CLASSES = 3
CLIENTS = by_steps(list(range(8)), list(SIZES))  # the largest first
WAYS = ("loop", "batched 2", "batched 3", "batched 8", "vmap 3")


@dataclass
class Step:
    """One step of one client in the plain loop."""

    model: nn.Module
    images: Tensor
    labels: Tensor  # int64 [B]
    logits: Tensor  # [B, C]
    features: Tensor  # [B, D]
    counts: Tensor  # the client's samples of each class, float64 [C]
    rows: Tensor  # int64 [B], of the store


def engine_of(way: str, folder: Path, pool: Pool | None = None, **federate: Any) -> Engine:
    """An engine of a backend and form, e.g. "batched 3" or "vmap 3", without augmentation unless it is asked for."""
    name, _, lanes = way.partition(" ")
    chosen = {"backend": "loop" if name == "vmap" else name, "augment": "none"}
    if name == "batched":
        chosen["lanes"] = int(lanes)
    engine = make_engine(settings(**{**chosen, **federate}), "small", folder=folder / way)
    engine.central.pool = pool
    if name == "vmap":
        form = checked(VmapForm(engine.host.model), engine.host.model, engine.data.image_shape)
        like = engine.server.vector.new_zeros(1)

        def make(lanes: int) -> LaneTrainer:
            return LaneTrainer(form, engine.layout, lanes, like, engine.method, engine.config.federate, engine.data)

        engine.backend = BatchedBackend(make, int(lanes))
    return engine


def engine_on(mesh: Mesh | None, folder: Path, pool: Pool | None = None, **federate: Any) -> Engine:
    """An engine on some ranks, that has asked what its method asks all clients before round 1."""
    engine = make_engine(settings(**federate), "small", mesh, folder)
    engine.central.pool = pool
    engine.survey("start", 0)
    return engine


def engines(folder: Path, pool: Pool | None = None, **federate: Any) -> Iterator[Engine]:
    """Engines of all backends and forms with the same settings, which name a method and its options."""
    for way in WAYS:
        yield engine_of(way, folder, pool, **federate)


def pool_of() -> Pool:
    """Four images of each class, and two of none."""
    images = torch.randn(14, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Pool(images, torch.tensor([0, 1, 2, -1, 2, 1, 0, 0, 1, 2, -1, 2, 1, 0]))


def models_after(engine: Engine, number: int = 1) -> dict[int, dict[str, Tensor]]:
    """Every client's model after its local training in round `number`, from the global one of now."""
    found = {}
    for group in engine.backend.train(engine.start(), engine.plan(number, CLIENTS)):
        for lane, client in enumerate(group.plan.clients):
            vector = group.state.model.lane(lane, torch.zeros_like(engine.server.vector))
            found[client] = engine.layout.views(vector.clone())
    return found


def counts_of(engine: Engine, client: int) -> Tensor:
    """The client's samples of each class, float64 [C]."""
    labels = engine.data._labels[torch.from_numpy(engine.clients[client])].tolist()
    return torch.tensor([labels.count(label) for label in range(CLASSES)], dtype=torch.float64)


def global_model(engine: Engine) -> Any:
    """A copy of the global model as it is now."""
    engine.host.load(engine.server.vector)
    return copy.deepcopy(engine.host.model)


def plainly(engine: Engine, client: int, objective: Callable[[Step], Tensor], number: int = 1) -> Any:
    """The client's model after round `number`'s local training, by torch.optim.SGD on a scalar `objective`."""
    federate, plan, model = engine.config.federate, engine.plan(number, [client]), global_model(engine)
    optimizer = torch.optim.SGD(model.parameters(), federate.lr, federate.momentum, weight_decay=federate.weight_decay)
    model.train()
    for rows, size in zip(plan.rows[:, 0], plan.counts[:, 0], strict=True):
        batch = torch.from_numpy(rows[:size])
        images, labels = engine.data.normalised(engine.data._host[batch]).double(), engine.data._labels[batch]
        features = model.features(images)
        optimizer.zero_grad()
        step = Step(model, images, labels, model.classifier(features), features, counts_of(engine, client), batch)
        objective(step).backward()
        optimizer.step()
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and statistics by name, without counters."""
    return {n: t.detach().clone() for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}


def set_global(engine: Engine, tensors: Mapping[str, Tensor]) -> None:
    """Put parameters and statistics by name in the place of the global model."""
    vector = torch.zeros_like(engine.server.vector)
    for name, view in engine.layout.views(vector).items():
        view.copy_(tensors[name])
    engine.server.vector = vector


def assert_models_equal(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor] | nn.Module, tolerance: float = 1e-9
) -> None:
    """Parameters and statistics, relative where they are large."""
    for name, tensor in (state_of(wanted) if isinstance(wanted, nn.Module) else wanted).items():
        difference = ((found[name] - tensor).abs() / tensor.abs().clamp(min=1)).max()
        assert difference <= tolerance, f"{name}: {difference}"  # a NaN is a difference


def assert_every_backend_trains(
    folder: Path, objective: Callable[[Engine, int, Step], Tensor], begin: Callable[[Engine], None], **federate: Any
) -> None:
    """Each client's model of each backend and form is that of the plain loop on `objective(engine, client, step)`.

    `begin` brings an engine to the round at hand, which is number 1.
    """
    wanted: dict[int, dict[str, Tensor]] = {}
    for engine in engines(folder, **federate):
        begin(engine)
        if not wanted:
            for client in CLIENTS:
                model = plainly(engine, client, lambda step, c=client, e=engine: objective(e, c, step))
                wanted[client] = state_of(model)
        found = models_after(engine)
        for client in CLIENTS:
            assert_models_equal(found[client], wanted[client])


def assert_rounds_are(
    folder: Path,
    reference: Callable[[Engine, int], Mapping[str, Tensor]],
    rounds: int = 3,
    pool: Pool | None = None,
    **federate: Any,
) -> None:
    """The global model of every backend and form, after each round, is what `reference(engine, number)` says.

    Its engine stands, before each round, where the reference was after the last one, and trains nothing itself.
    """
    plain, wanted = engine_of("loop", folder / "reference", **federate), []
    for number in range(1, rounds + 1):
        wanted.append(dict(reference(plain, number)))
        set_global(plain, wanted[-1])
    for engine in engines(folder, pool, **federate):
        for number in range(1, rounds + 1):
            assert engine.round(number) is not None
            assert_models_equal(engine.layout.views(engine.server.vector), wanted[number - 1])


def assert_a_saved_round_goes_on(folder: Path, pool: Pool | None = None, **federate: Any) -> None:
    """Three rounds at one go, and with a save and a restart after the second, end in the same bits."""
    options = {"checkpoint_every": 2, **federate}

    def made(name: str) -> Engine:
        return engine_of("batched 2", folder / name, pool, **options)

    whole = made("whole")
    whole.survey("start", 0)
    wanted = trained(whole)
    first = made("parts")
    first.survey("start", 0)
    trained(first, [1, 2])
    where = folder / "parts" / "batched 2"
    save_round(where, 2, first)
    second = made("parts")
    found = newest_round(where, second.host.whole_layout.describe())
    assert found is not None and found[0] == 2
    restore(second, found[1])
    assert torch.equal(trained(second, [3]), wanted)
    for name, tensor in whole.server.shared.items():
        assert torch.equal(second.server.shared[name], tensor), name
