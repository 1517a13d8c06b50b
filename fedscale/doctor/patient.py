"""Whom the checks look at: this process's place in the launch, and the config that it is to run."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from fedscale.config import Config
from fedscale.data.build import shard_folder
from fedscale.device import pick_device
from fedscale.distributed.launch import Place


@dataclass(frozen=True)
class Clocks:
    """The wall's clock and the one that cannot be set, read together; seconds."""

    wall: float = field(default_factory=time.time)
    steady: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Patient:
    """A rank and its config; `named`: whether the user named that config, or it is the defaults."""

    config: Config
    named: bool
    place: Place
    began: Clocks = field(default_factory=Clocks)

    @cached_property
    def device(self) -> torch.device:
        """Raises UserError like `pick_device`."""
        return pick_device(self.config)

    @cached_property
    def host(self) -> str:
        return socket.gethostname()

    @property
    def run_folder(self) -> Path:
        return Path(self.config.out) / self.config.name

    @property
    def shards_folder(self) -> Path:
        return shard_folder(self.config.data) if self.named else Path("shards")
