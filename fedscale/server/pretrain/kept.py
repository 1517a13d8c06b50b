"""What of a small pool stays in memory from one epoch to the next."""

from __future__ import annotations

import numpy as np

from fedscale.server.pretrain.examples import Example


class Kept:
    """Shards' examples by file, and decoded images by (file, key), as long as `room` bytes suffice."""

    def __init__(self, room: int) -> None:
        self.examples: dict[str, list[Example]] = {}
        self.images: dict[tuple[str, str], np.ndarray] = {}
        self._room = room

    def takes(self, size: int) -> bool:
        """Whether so many bytes more may be kept, which then count as kept."""
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits
