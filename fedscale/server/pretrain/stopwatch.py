"""Where a step's time goes: images a second, the share of waiting for data, the teacher's share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Times one step after the other. On a GPU each boundary waits for the device, or it would time launches alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = self._waited = self._taught = 0.0
        self.seconds = self.waited = self.taught = 0.0  # of all steps

    def start(self) -> None:
        """A step begins."""
        self._began, self._waited, self._taught = time.perf_counter(), 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for the loader."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Around the frozen teacher's work."""
        began = self._now()
        yield
        self._taught += self._now() - began

    def stop(self, images: int) -> dict[str, float]:
        """The step ends, with so many images over all ranks: its rate, and the shares of waiting and of the teacher."""
        seconds = self._now() - self._began
        self.seconds += seconds
        self.waited += self._waited
        self.taught += self._taught
        return {
            "images_per_second": images / seconds,
            "data_wait": self._waited / seconds,
            "teacher_share": self._taught / seconds,
        }

    def shares(self) -> dict[str, float]:
        """The shares over all steps so far; nothing before the first."""
        if not self.seconds:
            return {}
        return {"data_wait": self.waited / self.seconds, "teacher_share": self.taught / self.seconds}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
