"""Which backend, and how many lanes: as the config says, or by timing a few real steps of each within the memory.

A choice is a measurement, so it is kept: with the run, which goes on with it after a restart, and for this machine,
so that the same command computes with the same bits tomorrow.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedscale import files
from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.backends.base import Backend, RoundStart
from fedscale.federated.backends.batched import BatchedBackend
from fedscale.federated.backends.graph import CompiledTrainer, GraphTrainer
from fedscale.federated.backends.loop import LoopBackend
from fedscale.federated.backends.memory import free_bytes, is_out_of_memory, lane_bytes
from fedscale.federated.backends.trainer import LaneTrainer
from fedscale.federated.data import RoundData
from fedscale.federated.flat import FlatLayout
from fedscale.federated.lanes.convert import Form, batched_form, single_form
from fedscale.federated.lanes.layers import Unsupported
from fedscale.federated.methods import Method
from fedscale.federated.plan import GroupPlan

LANES = (2, 4, 8, 16, 32, 64, 128)
TIMED_STEPS = 4
LONG_TRIAL = 2.0  # seconds after which a candidate is not timed again
WORTH_COMPILING = 900.0  # seconds that training is expected to take, below which torch.compile is not even tried


@dataclass(frozen=True)
class Choice:
    """A backend and its lanes, with what was measured (seconds of a client's step by candidate)."""

    backend: str
    lanes: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Workshop:
    """What backends are made from. `say` takes a line for the log; `round_lanes` are the clients of a round."""

    model: nn.Module
    layout: FlatLayout
    like: Tensor
    method: Method
    settings: FederateConfig
    data: RoundData
    round_lanes: int
    say: Callable[[str], None]

    def make(self, backend: str, lanes: int) -> Backend:
        """The backend. A model that it cannot run goes to `loop`, which is said; UserError where K does not fit."""
        shape = self.data.image_shape
        if backend == "loop":
            form, reason = single_form(self.model, shape)
            if reason:
                self.say(f"federate: the model trains as it is, client by client ({reason})")
            return LoopBackend(self._trainer(LaneTrainer, form, 1))
        try:
            form, reason = batched_form(self.model, shape)
        except Unsupported as unsupported:
            self.say(f"federate.backend={backend}: no other backend than loop can run this model ({unsupported})")
            return self.make("loop", 1)
        if reason:
            self.say(f"federate.backend={backend}: through torch.func.vmap ({reason})")
        kind = LaneTrainer if backend == "batched" else GraphTrainer if self._on_gpu else CompiledTrainer
        self._check_fits(lanes)
        return BatchedBackend(lambda k: self._trainer(kind, form, k), lanes, backend, self.settings.aggregate.exact)

    @property
    def _on_gpu(self) -> bool:
        return self.like.device.type == "cuda"

    def _trainer(self, kind: type[LaneTrainer], form: Form, lanes: int) -> LaneTrainer:
        return kind(form, self.layout, lanes, self.like, self.method, self.settings, self.data)

    def needed_bytes(self, lanes: int) -> int:
        """Bytes of the lanes' buffers and of a backward pass's gradients."""
        return lanes * lane_bytes(self.layout, self.method, self.settings, self.like.element_size())

    def _check_fits(self, lanes: int) -> None:
        needed, free = self.needed_bytes(lanes), free_bytes(self.like.device)
        if needed > free * self.settings.memory:
            fits = max(1, int(free * self.settings.memory) // self.needed_bytes(1))
            raise UserError(
                f"federate.lanes={lanes}: needs {needed / 2**30:.1f} GiB, expected at most {self.settings.memory:.0%} "
                f"of the {free / 2**30:.1f} GiB that are free; at most federate.lanes={fits}, or raise federate.memory"
            )

    def choose(self, plan: Callable[[int], GroupPlan], start: RoundStart, total_steps: float) -> Choice:
        """Time `loop` and `batched` (or `graph`) and take the fastest; `plan(K)` is a real group of K clients.

        `total_steps` are the clients' steps that the run has before it, on this rank.
        """
        asked, wanted = self.settings.backend, self.settings.lanes
        seconds: dict[str, float] = {}
        if asked in ("auto", "loop"):
            seconds["loop:1"] = self._timed("loop", 1, plan, start)
        if asked != "loop":
            family = (
                "graph" if asked == "graph" or (asked == "auto" and self._on_gpu and self.data.resident) else "batched"
            )
            slower = 0
            for lanes in [wanted] if wanted else self._candidates():
                seconds[f"{family}:{lanes}"] = rate = self._timed(family, lanes, plan, start)
                slower = slower + 1 if rate > 1.15 * min(seconds.values()) else 0
                if slower == 2 and lanes > 4:  # more lanes have stopped to pay
                    break
        best = min(seconds, key=lambda name: seconds[name])
        if asked == "auto" and not self._on_gpu and seconds[best] * total_steps > WORTH_COMPILING:
            lanes = int(best.split(":")[1])
            seconds[f"graph:{lanes}"] = 1.05 * self._timed("graph", lanes, plan, start)
            best = min(seconds, key=lambda name: seconds[name])
        backend, _, number = best.partition(":")
        return Choice(backend, int(number), {name: round(value, 9) for name, value in seconds.items()})

    def _candidates(self) -> Iterator[int]:
        for lanes in sorted({k for k in LANES if k < self.round_lanes} | {self.round_lanes}):
            fits = self.needed_bytes(lanes) <= free_bytes(self.like.device) * self.settings.memory
            if lanes > 1 and fits:
                yield lanes

    def _timed(self, backend: str, lanes: int, plan: Callable[[int], GroupPlan], start: RoundStart) -> float:
        """Seconds of one client's step, the fastest of four trials; infinite when the memory does not suffice."""
        quiet = Workshop(**{**self.__dict__, "say": lambda line: None})
        try:
            made = quiet.make(backend, lanes)
            if isinstance(made, LoopBackend) and backend != "loop":
                return float("inf")
            whole = plan(lanes)
            warm, timed = whole.first_steps(TIMED_STEPS), []
            for _ in range(5):  # the first warms up
                self._synchronise()
                began = time.perf_counter()
                for _trained in made.train(start, warm):
                    pass
                self._synchronise()
                timed.append((time.perf_counter() - began) / warm.total_steps)
                if sum(timed) * warm.total_steps > LONG_TRIAL and len(timed) > 1:
                    break
            return min(timed[1:])
        except Exception as error:
            if is_out_of_memory(error):
                return float("inf")
            raise

    def _synchronise(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self.like.device)


def cached_choice(workshop: Workshop, choose: Callable[[], Choice]) -> Choice:
    """The choice that this machine made for such a model, shapes and device before, or a new one, which is kept."""
    device = workshop.like.device
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    relevant = {
        "model": workshop.layout.describe(),
        "image": list(workshop.data.image_shape),
        "method": workshop.method.name,
        "round": workshop.round_lanes,
        "device": [named, torch.get_num_threads()],
        "torch": torch.__version__,
        "settings": {
            name: value
            for name, value in asdict(workshop.settings).items()
            if name in ("batch_size", "augment", "momentum", "weight_decay", "backend", "lanes", "precision", "store")
        },
    }
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedscale"
    path = cache / f"backend-{files.fingerprint(relevant)}.json"
    try:
        found = files.read_json(path)
        return Choice(found["backend"], int(found["lanes"]), dict(found["seconds"]))
    except (UserError, KeyError, TypeError, ValueError):
        choice = choose()
    try:
        files.write_json(path, asdict(choice))
    except (UserError, OSError):
        workshop.say(f"federate: {path.parent} cannot be written; the choice of a backend is kept with this run alone")
    return choice


def described(choice: Choice) -> str:
    """The choice in a line."""
    rates: Sequence[str] = [
        f"{name.replace(':', ' × ')} {1 / value:,.0f}" for name, value in choice.seconds.items() if value < float("inf")
    ]
    measured = f" (client steps/s: {', '.join(rates)})" if len(rates) > 1 else ""
    return f"federate: backend {choice.backend}, {choice.lanes} lane(s){measured}"
