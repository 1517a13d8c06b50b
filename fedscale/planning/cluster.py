"""The machines that a plan is for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedscale.config.checks import require
from fedscale.planning.hardware import Hardware


@dataclass(frozen=True)
class Cluster:
    """`nodes` nodes of this kind with `per_node` ranks each, a GPU a rank; on CPUs ranks share the node's cores."""

    node: Hardware
    nodes: int = 1
    per_node: int = 1

    def __post_init__(self) -> None:
        require(self.nodes >= 1, "--nodes", self.nodes, "1 or more")
        require(self.per_node >= 1, "--gpus", self.per_node, "1 or more")

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    @property
    def computing(self) -> int:
        """Ranks that compute at full speed at a time, of all nodes."""
        return self.nodes * (min(self.per_node, self.node.cores) if self.node.is_cpu else self.per_node)

    @property
    def stretch(self) -> float:
        """How much longer work takes that all ranks of a node do at once, because they share its cores."""
        return max(1.0, self.per_node / self.node.cores) if self.node.is_cpu else 1.0

    @property
    def hops(self) -> float:
        """Messages one after another in a collective of all ranks: round a ring on CPUs (gloo), up a tree on GPUs.

        Ranks that wait leave their core to others, so that sharing cores does not stretch a message.
        """
        return 2 * (self.world - 1) if self.node.is_cpu else 2 * math.ceil(math.log2(self.world))

    @property
    def crowding(self) -> float:
        """The share of the other cores of a CPU that compute meanwhile."""
        if not self.node.is_cpu or self.node.cores < 2:
            return 0.0
        return (min(self.per_node, self.node.cores) - 1) / (self.node.cores - 1)

    @property
    def loader_cores(self) -> float:
        """Cores of a rank for reading and decoding beside the device; a CPU's rank has its one alone."""
        return 1.0 if self.node.is_cpu else max(1.0, self.node.cores / self.per_node)
