"""Seconds of a stage: its amounts times the rates, what runs beside one another counted once; and what limits it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedscale.planning.hardware import Hardware
from fedscale.planning.work import DEVICE, IDLE, KINDS, LOADER, MEMORY, StageWork, Work

MOST_IDLE = 0.3  # share of waiting above which the ranks that wait are the limit
REMEDIES = {
    "compute": "more GPUs, a lower precision, or a smaller model",
    "memory bandwidth": "larger batches, or a GPU with a faster memory",
    "launches": "larger batches: many small layers are queued one by one",
    "decoding": "more cores, or smaller images in the shards",
    "reading": "copy the shards to the nodes' own disks: `fedscale submit --stage-in`",
    "writing": "checkpoints less often (pretrain.save_every, federate.checkpoint_every), or a faster disk",
    "network": "fewer nodes, larger batches or more local epochs",
    "fixed overhead": "nothing: starting takes most of it",
}
CPU_REMEDIES = {  # of a plan for CPUs, before all others
    "compute": "a GPU (--gpu), more processes up to the cores, or a smaller model",
    "memory bandwidth": "a GPU (--gpu)",
}
OWN_REMEDIES = {  # of a stage
    (
        "caption",
        "memory bandwidth",
    ): "a larger caption.batch_size, as far as keys and values fit: weights are read for all",
    ("caption", "launches"): "a larger caption.batch_size, or caption.engine=vllm",
    ("pretrain", "decoding"): "more pretrain.workers, or smaller images in the shards",
    ("federate", "memory bandwidth"): "federate.precision=bf16, or federate.backend=graph",
    ("federate", "launches"): "federate.lanes, or federate.backend=graph: many small layers are queued one by one",
    ("federate", "network"): "more local epochs, or fewer nodes",
    ("align", "decoding"): "one rank draws the set: align.labels=keyword decodes only what it takes",
    ("align", "network"): "one GPU: so short a training gains nothing from more",
}


@dataclass(frozen=True)
class Term:
    """One kind of work of a stage. `seconds` are those it takes by itself."""

    kind: str
    amount: float
    rate: float  # seconds of one unit
    seconds: float
    basis: str


@dataclass(frozen=True)
class Prediction:
    """What a stage takes. `hidden` are seconds of `terms` that pass beside others."""

    stage: StageWork
    terms: tuple[Term, ...]
    seconds: float
    hidden: float
    limit: str
    remedy: str
    memory: float  # bytes of a rank's device
    fits: bool


def predict(
    stage: StageWork, node: Hardware, rates: Mapping[str, float], basis: Mapping[str, str], workers: int = 0
) -> Prediction:
    """The prediction for a stage. `workers` > 0: readers beside the device, which on a CPU share its cores.

    On a GPU reading is hidden behind computing where something reads ahead, and queueing layers behind carrying them
    out; on a CPU nothing is hidden.
    """
    terms = tuple(
        Term(kind, amount, rates[kind], amount * rates[kind], basis[kind])
        for kind, amount in sorted(stage.work.amounts.items(), key=lambda item: list(KINDS).index(item[0]))
        if amount > 0
    )
    seconds, hidden = total_seconds(stage.work, node, rates, workers)
    memory = sum(stage.memory.values())
    limit, remedy = _limit(stage, terms, node)
    fits = memory <= node.usable
    if not fits:
        limit, remedy = MEMORY, stage.memory_remedy
    return Prediction(stage, terms, seconds, hidden, limit, remedy, memory, fits)


def total_seconds(work: Work, node: Hardware, rates: Mapping[str, float], workers: int = 0) -> tuple[float, float]:
    """(seconds, seconds that are hidden behind others)."""

    def spent(kinds: tuple[str, ...]) -> float:
        return sum(work[kind] * rates[kind] for kind in kinds)

    everything = spent(tuple(KINDS))
    if node.is_cpu:
        return everything, 0.0
    device = spent(DEVICE)
    hidden = min(device, spent(("call",)))
    if workers:
        busy = max(device, spent(("call",)))
        hidden += min(busy, spent(LOADER))
    return everything - hidden, hidden


def _limit(stage: StageWork, terms: tuple[Term, ...], node: Hardware) -> tuple[str, str]:
    by_limit: dict[str, float] = {}
    for term in terms:
        limit = KINDS[term.kind].limit
        by_limit[limit] = by_limit.get(limit, 0.0) + term.seconds
    if not by_limit:
        return "nothing", ""
    most = max(by_limit, key=lambda name: by_limit[name])
    if stage.idle > MOST_IDLE:
        return IDLE, stage.idle_remedy
    if node.is_cpu and most in CPU_REMEDIES:
        return most, CPU_REMEDIES[most]
    return most, OWN_REMEDIES.get((stage.stage, most), REMEDIES[most])
