"""What training moves between ranks and keeps on them, by strategy: DDP, FSDP2, ZeRO-1/2/3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedscale.config.schema import Config
from fedscale.distributed.strategy import asked_strategy, read_launch_file
from fedscale.planning.cluster import Cluster
from fedscale.planning.work import Work

BUCKET = 25 * 2**20  # bytes that DDP reduces at a time


@dataclass(frozen=True)
class Strategy:
    """How a module's training is cut over ranks; `zero` is the stage, 3 for FSDP2, 0 for DDP and one process."""

    name: str
    zero: int = 0

    @property
    def cuts_optimiser(self) -> bool:
        return self.zero >= 1

    @property
    def cuts_gradients(self) -> bool:
        return self.zero >= 2

    @property
    def cuts_weights(self) -> bool:
        return self.zero >= 3


DDP = Strategy("ddp")


def strategy_of(config: Config) -> Strategy:
    """The strategy of `launch=`, DDP without one. Raises UserError for a file that is none of both forms."""
    if not config.launch:
        return DDP
    told: dict[str, str] = {"WORLD_SIZE": "2"}
    read_launch_file(config.launch, told)
    name = asked_strategy(told)
    if name == "fsdp2":
        whole = told.get("FSDP_RESHARD_AFTER_FORWARD", "true") == "true"
        return Strategy("fsdp2", 3 if whole else 2)
    if name != "deepspeed":
        return DDP
    file = told.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file:
        stage = json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"]["stage"]
    else:
        stage = told["ACCELERATE_DEEPSPEED_ZERO_STAGE"]
    return Strategy(f"zero{stage}", int(stage))


def state_bytes(
    parameters: float, strategy: Strategy, ranks: int, weight: float = 4, gradient: float = 4, optimiser: float = 8
) -> float:
    """Bytes a rank keeps of trained parameters: weights, gradients, optimiser's state, so many bytes a parameter each.

    Source: Rajbhandari et al., arXiv 1910.02054, figure 1 (2, 2 and 12 bytes in mixed precision).
    """
    parts = (
        (weight, strategy.cuts_weights),
        (gradient, strategy.cuts_gradients),
        (optimiser, strategy.cuts_optimiser),
    )
    return parameters * sum(size / (ranks if cut else 1) for size, cut in parts)


def reduced(size: float, ranks: int) -> float:
    """Bytes that a rank sends to sum `size` bytes over all ranks by a ring: reduce-scatter, then all-gather."""
    return 2 * (ranks - 1) / ranks * size


def gathered(size: float, ranks: int) -> float:
    """Bytes that a rank sends where all gather `size` bytes, or reduce and scatter them."""
    return (ranks - 1) / ranks * size


def sent_in_step(strategy: Strategy, ranks: int, gradient_bytes: float, weight_bytes: float, passes: int = 1) -> float:
    """Bytes that a rank sends in an optimiser step of `passes` backward passes.

    ZeRO-1 and -2 send as much as DDP; with ZeRO-3 and FSDP2 all weights, the frozen ones too, are gathered forward and
    backward in every pass (arXiv 1910.02054, section 7).
    """
    if strategy.cuts_weights:
        return passes * (2 * gathered(weight_bytes, ranks) + gathered(gradient_bytes, ranks))
    return reduced(gradient_bytes, ranks)


def sending(size: float, collectives: float, cluster: Cluster) -> Work:
    """`size` bytes sent by a rank in so many collectives; a ring over nodes leaves each once, for all its ranks."""
    return Work({"wire" if cluster.nodes > 1 else "link": size, "message": collectives * cluster.hops})
