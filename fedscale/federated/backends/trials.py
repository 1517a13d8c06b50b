"""How long a client's step takes on a backend, in a round's proportions: trials with the clients of a real round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedscale.federated.backends.base import Backend, RoundStart, Trained
from fedscale.federated.cohort import groups_of
from fedscale.federated.plan import GroupPlan


@dataclass
class Rehearsal:
    """A round's clients, the largest first, how a group of them is planned, and how trained lanes are summed."""

    cohort: Sequence[int]
    plan: Callable[[Sequence[int]], GroupPlan]
    absorb: Callable[[Trained], None]
    start: RoundStart
    device: torch.device
    _last: float = field(default=0.0, init=False)

    def seconds(self, backend: Backend, clients: int, steps: int) -> float:
        """Seconds of a client's step, from the first `steps` steps of the cohort's first `clients` clients.

        What a group costs once (its plan, filling the lanes, the sum) is shared out over all steps that its clients
        have in a round, so that cutting the trial short does not count it several times.
        """
        once = stepping = 0.0
        done = whole = 0

        def begun() -> None:
            nonlocal once
            once += self._lap()

        start = replace(self.start, begun=begun)
        self._lap()
        for group in groups_of(self.cohort[:clients], backend.lanes):
            plan = self.plan(group)
            cut = plan.first_steps(steps)
            for trained in backend.train(start, cut):
                stepping += self._lap()
                self.absorb(trained)
                once += self._lap()
            done, whole = done + cut.total_steps, whole + plan.total_steps
        return once / whole + stepping / done

    def num_steps(self, clients: int) -> int:
        """Steps that the first `clients` clients have in a round."""
        return self.plan(self.cohort[:clients]).total_steps

    def _lap(self) -> float:
        """Seconds since the last call: of the CPU where one thread computes, since others' work does not count then."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        now = time.process_time() if alone else time.perf_counter()
        last, self._last = self._last, now
        return now - last
