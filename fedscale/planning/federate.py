"""Stage 2: clients' passes, the round's one sum, the evaluations; bytes and memory by the engine's own functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedscale.config.schema import Config
from fedscale.federated.backends.memory import lane_bytes
from fedscale.federated.client_state import rows_at_most
from fedscale.federated.cost import ImageFlops, RoundCost, round_cost
from fedscale.federated.flat import FlatLayout
from fedscale.federated.methods import Method, Problem, make_method
from fedscale.planning.cluster import Cluster
from fedscale.planning.collectives import gathered, reduced, sending
from fedscale.planning.counts import Counts
from fedscale.planning.schedule import Population, Share, weighed
from fedscale.planning.shapes import FLOAT, Student
from fedscale.planning.work import StageWork, Work

SUM_BYTES = {"fp32": 4, "fp64": 8}  # of a number in the round's sum; 8 also in exact mode
KEPT_CHECKPOINTS = 2
KEY_BYTES = 21  # of an image in partition.json: its row and its key
DRAWN_IN_A_ROUND = 8192  # clients that are drawn, ordered and dealt while a round's fixed part passes: 6 µs each
INDEX_BYTES = 120  # of a client in a rank's memory: its array of rows, beside 8 a row


@dataclass(frozen=True)
class Rounds:
    """What rounds are made of: the method, the layout, a round's cost, and how the cohort spreads over ranks."""

    method: Method
    layout: FlatLayout
    cost: RoundCost
    share: Share
    lanes: int
    mesh: int  # ranks along `clients`


def rounds_of(config: Config, counts: Counts, student: Student, cluster: Cluster) -> Rounds:
    """Raises UserError for a method that is not there, or does not take such a problem."""
    settings = config.federate
    sizes = counts.sizes
    method = make_method(settings, Problem(counts.classes, student.feature_dim, len(sizes)))
    layout = FlatLayout.of(student.model)
    forward, backward = (int(sum(part.values())) for part in (student.passes.forward, student.passes.backward))
    held = sizes.tolist()
    cost = round_cost(layout, method, settings, held, ImageFlops(forward, backward))
    lanes = (settings.lanes or 1) if settings.backend != "loop" and settings.shard == 1 else 1
    mesh = max(1, cluster.world // settings.shard)
    per_round = min(settings.clients_per_round, len(sizes))
    population = Population(
        sizes, per_round, lanes, settings.batch_size, settings.local_epochs, config.seed, settings.even_groups
    )
    busy = max(1.0, cluster.computing / settings.shard)
    return Rounds(method, layout, cost, weighed(population, mesh, busy, settings.rounds), lanes, mesh)


def federate_work(config: Config, counts: Counts, student: Student, cluster: Cluster) -> StageWork:
    """All rounds, without the evaluations. Raises UserError like `rounds_of`."""
    settings, rounds = config.federate, config.federate.rounds
    found = rounds_of(config, counts, student, cluster)
    share, method, precision = found.share, found.method, _precision(config, cluster)
    passes = student.passes
    itemsize = 2 if precision == "bf16" else FLOAT
    asked = found.cost.flops / passes.flops if passes.flops else 0.0  # images through both passes, views included
    busiest = share.busiest / max(share.steps, 1e-9)
    work = passes.trained(asked * busiest, precision, itemsize)
    vectors = 1 + len(method.roles) + (settings.momentum > 0)
    work += Work(
        {
            "traffic": student.update(1)["traffic"] * vectors * share.busiest
            + 4 * student.bytes * share.busiest_clients,
            "call": 2.0 * passes.calls * share.calls,
        }
    )
    work += Work({"crowd": work.flops * cluster.crowding})
    if settings.shard > 1:  # every client's step on all ranks of a row, its weights gathered layer by layer
        work = work * (1 / settings.shard) + Work({"call": work["call"] * (1 - 1 / settings.shard)})
        row = 3 * gathered(FLOAT * student.parameters, settings.shard) * share.busiest
        work += Work({"link": row, "message": 3.0 * _units(student) * share.busiest})
    work += _collected(config, found, student, cluster)
    work += Work(
        {
            "write": _checkpoint_bytes(found, student) / settings.checkpoint_every,
            "round": 1 + found.cost.clients / DRAWN_IN_A_ROUND,
        }
    )
    if method.client_state:
        work += Work({"write": len(method.client_state) * student.bytes * share.busiest_clients})
    work = work * rounds + Work({"start": 1})
    idle = share.of(found.mesh, int(max(1, cluster.computing // settings.shard)))
    return StageWork(
        "federate",
        work,
        cluster.world,
        idle,
        _idle_remedy(config, found, share),
        {
            "rounds": rounds,
            "client trainings": found.cost.clients * rounds,
            "client steps": share.steps * rounds,
            "flops": found.cost.flops * rounds,
            "client bytes down": found.cost.bytes_down * rounds,
            "client bytes up": found.cost.bytes_up * rounds,
        },
        _memory(config, counts, student, found, cluster),
        "a smaller federate.batch_size, fewer federate.lanes, or federate.shard=2: a client's model on two ranks",
        _storage(config, counts, student, found),
        _obstacles(config, cluster),
        _notes(config, counts, found),
        _rated(config),
    )


def evaluation_work(
    config: Config, counts: Counts, student: Student, cluster: Cluster, stage: str, times: int
) -> StageWork:
    """Within `stage`, the global model on the whole split so many times, each rank on its part."""
    ranks = max(1, cluster.world // config.federate.shard)
    images = -(-counts.judged(config.eval.split) // ranks)
    batches = math.ceil(images / config.eval.batch_size)
    work = student.passes.once(images * cluster.stretch, _precision(config, cluster))
    work += Work({"call": float(student.passes.calls * batches) * cluster.stretch})
    work += Work({"crowd": work.flops * cluster.crowding})
    if cluster.world > 1:
        work += sending(8.0 * counts.classes**2, 2, cluster)
    size = config.data.image_size
    batch = min(config.eval.batch_size, images) * (4 * FLOAT * student.passes.outputs / max(1, student.passes.calls))
    return StageWork(
        f"evaluation of {stage}",
        work * times,
        cluster.world,
        1 - counts.judged(config.eval.split) / max(1, images * ranks),
        "nothing: a few images",
        {"evaluations": times, "images": float(times * counts.judged(config.eval.split))},
        {
            "model": float(student.bytes),
            "batch": float(batch + min(config.eval.batch_size, images) * 3 * FLOAT * size**2),
        },
        "a smaller eval.batch_size",
        {"store": float(counts.judged(config.eval.split) * (3 * size**2 + 8))},
        rated_as=_rated(config) if stage == "federate" else stage,
    )


def evaluations(config: Config) -> int:
    """How often stage 2 evaluates."""
    rounds, every = config.federate.rounds, config.eval.every
    return max(1, rounds // every + (rounds % every > 0))


def _rated(config: Config) -> str:
    """A backend with lanes has rates of its own."""
    settings = config.federate
    return f"federate {settings.backend}" if settings.backend in ("batched", "graph") else "federate"


def _precision(config: Config, cluster: Cluster) -> str:
    return "fp32" if cluster.node.is_cpu else config.federate.precision


def _collected(config: Config, found: Rounds, student: Student, cluster: Cluster) -> Work:
    """The round's collective: parameters, uploads, statistics, reports and the record in one vector."""
    if found.mesh == 1:
        return Work({"traffic": 8.0 * (student.parameters + student.statistics)})
    settings, method = config.federate, found.method
    size = 8 if settings.aggregate.exact else SUM_BYTES[settings.aggregate.dtype]
    reports = sum(math.prod(shape) for shape in method.reports.values())
    numbers = (1 + len(method.uploads)) * student.parameters + student.statistics + reports
    numbers += 2 * settings.clients_per_round + 2 * found.mesh  # the record
    sent, messages = reduced(size * numbers / settings.shard, found.mesh), 3.0
    if method.server_state:  # reduced in parts, and the renewed parameters gathered as they are
        sent += gathered(FLOAT * student.parameters * (1 + len(method.broadcast)) / settings.shard, found.mesh)
        messages += 1 + len(method.broadcast)
    return sending(sent, messages, cluster)


def _checkpoint_bytes(found: Rounds, student: Student) -> float:
    method = found.method
    shared = sum(math.prod(shape) for shape in method.shared.values())
    return student.bytes + FLOAT * (len(method.server_state) * student.parameters + shared)


def _units(student: Student) -> int:
    """Pieces that FSDP2 gathers: the model's children."""
    return sum(1 for child in student.model.children() if any(True for _ in child.parameters()))


def _memory(config: Config, counts: Counts, student: Student, found: Rounds, cluster: Cluster) -> dict[str, float]:
    settings = config.federate
    itemsize = 2 if _precision(config, cluster) == "bf16" else FLOAT
    lane = lane_bytes(found.layout, found.method, settings, FLOAT) / settings.shard
    size = 8 if settings.aggregate.exact else SUM_BYTES[settings.aggregate.dtype]
    batch = min(settings.batch_size, int(counts.sizes.max(initial=1)))
    saved = student.passes.saved * itemsize / FLOAT * math.ceil(batch / settings.shard) * found.lanes
    parts = {
        "lanes": lane * found.lanes,
        "activations": saved,
        "global model and sum": (FLOAT * 2 + size * (1 + len(found.method.uploads)))
        * student.parameters
        / settings.shard,
    }
    store = counts.train * 3.0 * config.data.image_size**2
    room = cluster.node.usable * settings.memory
    if settings.store == "resident" or (settings.store == "auto" and store <= room and not cluster.node.is_cpu):
        parts["client store"] = store
    else:  # two groups at a time, the next one behind the one that trains
        parts["staged images"] = 2 * found.lanes * float(counts.sizes.max(initial=1)) * 3 * config.data.image_size**2
    return parts


def _storage(config: Config, counts: Counts, student: Student, found: Rounds) -> dict[str, float]:
    settings, method = config.federate, found.method
    files = {
        "client store": counts.train * (3.0 * config.data.image_size**2 + 8),
        "checkpoints": (KEPT_CHECKPOINTS + 1) * _checkpoint_bytes(found, student),
        "partition": float(counts.train * KEY_BYTES),
    }
    if method.client_state:
        row = len(method.client_state) * FLOAT * student.parameters
        if set(method.client_state) & set(method.models):
            row += FLOAT * student.statistics
        clients = len(counts.sizes)
        files["client state"] = float(
            rows_at_most(clients, settings.clients_per_round, settings.checkpoint_every) * row
        )
    return files


def _idle_remedy(config: Config, found: Rounds, share: Share) -> str:
    groups = math.ceil(found.cost.clients / found.lanes)
    if groups < found.mesh:
        return (
            f"{groups} groups of clients for {found.mesh} ranks: {math.ceil(groups)} ranks are enough; or raise "
            "federate.clients_per_round" + ("" if found.lanes == 1 else ", lower federate.lanes")
        )
    if found.lanes > 1 and not config.federate.even_groups:
        return "federate.even_groups=true, so that the largest clients do not wait for one another in one group"
    return "more clients a round, or fewer lanes, so that every rank has several groups"


def _obstacles(config: Config, cluster: Cluster) -> list[str]:
    settings = config.federate
    if cluster.world % settings.shard:
        return [f"federate.shard={settings.shard} does not divide {cluster.world} ranks; launch a multiple of it"]
    return []


def _notes(config: Config, counts: Counts, found: Rounds) -> list[str]:
    notes, settings = [], config.federate
    if settings.backend != "loop" and not settings.lanes and settings.shard == 1:
        notes.append("federate.lanes is chosen by trial when the run starts; one lane a group is assumed here")
    if found.method.works:
        notes.append(f"the server's own training of {found.method.name} is not counted")
    if settings.precision == "fp32":
        notes.append("federate.precision=fp32: tf32 or bf16 train faster on a GPU, with other low-order bits")
    memory = len(counts.sizes) * INDEX_BYTES + counts.train * (8 + 64)
    if memory > 2**30:
        notes.append(
            f"each rank also holds {memory / 2**30:.1f} GiB of the host's memory for the clients' index and keys"
        )
    if int(np.ptp(counts.sizes)) == 0 or not counts.exact:
        notes.append(f"clients' sizes: {counts.told}")
    return notes
