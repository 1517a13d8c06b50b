"""Work as amounts by kind: exact counts of what the busiest rank has to do, in units that a machine has rates for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

PRECISIONS = ("fp32", "tf32", "bf16")


class Kind(NamedTuple):
    """A kind of work: what one unit of it is, and what it is that limits where most time goes into it."""

    unit: str
    limit: str


COMPUTE, BANDWIDTH, LAUNCHES = "compute", "memory bandwidth", "launches"
DECODING, READING, WRITING = "decoding", "reading", "writing"
NETWORK, FIXED, IDLE, MEMORY = "network", "fixed overhead", "idle ranks", "memory"

KINDS = {
    **{f"conv.{precision}": Kind("FLOP", COMPUTE) for precision in PRECISIONS},
    **{f"matmul.{precision}": Kind("FLOP", COMPUTE) for precision in PRECISIONS},
    "crowd": Kind("FLOP", COMPUTE),  # of a CPU's rank beside which others compute on the same memory
    "traffic": Kind("byte", BANDWIDTH),  # to and from the device's memory
    "call": Kind("call", LAUNCHES),  # of a layer, forward or backward
    "image": Kind("image", DECODING),  # what decoding an image takes whatever its size
    "pixel": Kind("pixel", DECODING),
    "read": Kind("byte", READING),  # from the file system, by a node
    "write": Kind("byte", WRITING),  # to it, synced
    "link": Kind("byte", NETWORK),  # sent by a rank to others of its node
    "wire": Kind("byte", NETWORK),  # sent by a node to others
    "message": Kind("message", NETWORK),  # one after another, whatever their size
    "round": Kind("round", FIXED),
    "start": Kind("start", FIXED),
}
DEVICE = tuple(name for name, kind in KINDS.items() if kind.limit in (COMPUTE, BANDWIDTH))
LOADER = ("image", "pixel", "read")  # what the host does ahead of the device


@dataclass(frozen=True)
class Work:
    """Amounts by kind, of KINDS; the kinds that are not there are 0."""

    amounts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.amounts.keys() <= KINDS.keys(), self.amounts.keys() - KINDS.keys()

    def __add__(self, other: Work) -> Work:
        kinds = [*self.amounts, *(kind for kind in other.amounts if kind not in self.amounts)]
        return Work({kind: self[kind] + other[kind] for kind in kinds})

    def __mul__(self, times: float) -> Work:
        return Work({kind: amount * times for kind, amount in self.amounts.items()})

    def __getitem__(self, kind: str) -> float:
        return self.amounts.get(kind, 0.0)

    def only(self, kinds: tuple[str, ...]) -> Work:
        """The amounts of these kinds alone."""
        return Work({kind: amount for kind, amount in self.amounts.items() if kind in kinds})

    @property
    def flops(self) -> float:
        """Floating-point operations of all kinds; a multiply-add is two."""
        return sum(amount for kind, amount in self.amounts.items() if kind.startswith(("conv.", "matmul.")))


@dataclass
class StageWork:
    """What a stage has to do: `work` of the busiest rank, and what is told beside the time.

    `total` counts things of the whole stage (images, steps, …), `memory` bytes of one rank's device by part, `storage`
    bytes of files by what they hold. `idle` is the share of the ranks' time in which they wait for the busiest.
    `obstacles` are what would stop the run, or slow it down, each with its remedy; `notes` what was assumed.
    """

    stage: str
    work: Work
    ranks: int
    idle: float = 0.0
    idle_remedy: str = ""
    total: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    memory_remedy: str = ""
    storage: dict[str, float] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rated_as: str = ""  # the stage whose measured rates hold; its own if ""
    predictable: bool = True  # not where somebody else's machine does the work
