"""Which backend, and how many lanes: as the config says, or by timing real steps of each within the memory.

All candidates are timed shortly; those that come close to the fastest are timed again in turn, with more of a round.
A choice is a measurement, so it is kept: with the run, which goes on with it after a restart, and for this machine,
so that the same command computes with the same bits tomorrow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fedscale import files
from fedscale.device import device_name
from fedscale.errors import UserError
from fedscale.federated.backends.base import Backend
from fedscale.federated.backends.loop import LoopBackend
from fedscale.federated.backends.memory import is_out_of_memory
from fedscale.federated.backends.trials import Rehearsal
from fedscale.federated.backends.workshop import Workshop

MOST_LANES = 128  # beside all of a round's
TIMED_STEPS = 4
LONG_TRIAL = 1.0  # seconds after which a candidate is not timed again
FINALISTS, CLOSE = 3, 1.3  # so many candidates, and no more than so many times the fastest, are timed again
FINAL_SECONDS = 4.0  # of all finalists' trials together
FINAL_TRIALS = (2, 9)  # least and most of each finalist, in turn; the fastest counts
ALIKE = 1.03  # times the fastest: that is noise, and the most lanes are taken, which make the fewest groups
WORTH_COMPILING = 900.0  # seconds that training is expected to take, below which torch.compile is not even tried


@dataclass(frozen=True)
class Choice:
    """A backend and its lanes, with what was measured (seconds of a client's step by candidate)."""

    backend: str
    lanes: int
    seconds: dict[str, float]


def choose(workshop: Workshop, rehearsal: Rehearsal, total_steps: float) -> Choice:
    """Time `loop` and `batched` (or `graph`) with a rehearsed round's clients and take the fastest.

    `total_steps` are the clients' steps that the run has before it, on this rank. The trials take 24 s at most (2 s for
    each of up to 10 candidates, then FINAL_SECONDS), unless a step of all lanes takes seconds; compiling comes on top.
    """
    asked, on_gpu = workshop.settings.backend, workshop.on_gpu
    trials = _Trials(replace(workshop, say=lambda line: None), rehearsal)
    if asked in ("auto", "loop"):
        trials.time("loop", 1)
    if asked != "loop":
        on_graphs = asked == "graph" or (asked == "auto" and on_gpu and workshop.data.resident)
        name = "graph" if on_graphs else "batched"
        if workshop.settings.lanes:
            trials.time(name, workshop.settings.lanes)
        else:
            _time_lanes(trials, name)
    trials.finals()
    best = _fastest(trials.seconds)
    if asked == "auto" and not on_gpu and trials.seconds[best] * total_steps > WORTH_COMPILING:
        compiled = "graph:" + best.split(":")[1]
        if 1.05 * trials.time(*_parts(compiled)) < trials.seconds[best]:
            best = compiled
    return Choice(*_parts(best), {name: round(value, 9) for name, value in trials.seconds.items()})


def _time_lanes(trials: _Trials, backend: str) -> None:
    """From few lanes to many, about twice as many each time, until more do not pay; then some beside the best.

    For g groups a round of n clients takes ⌈n / g⌉ lanes: more of them make no fewer groups, and fill the caches.
    """
    most, slower = trials.workshop.round_lanes, 0
    tried = {_parts(name)[1] for name in trials.seconds}

    def rate(groups: int) -> float:
        lanes = -(-most // groups)
        if lanes in tried or MOST_LANES < lanes < most or not trials.workshop.fits(lanes):
            return 0.0
        tried.add(lanes)
        return trials.time(backend, lanes)

    for power in reversed(range(most.bit_length())):
        slower = slower + 1 if rate(2**power) > 1.05 * min(trials.seconds.values(), default=0.0) else 0
        if slower == 2 and most >> power > 4:
            break
    if not trials.seconds:
        trials.time(backend, 1)  # which raises, and says what memory it takes
    best = _parts(min(trials.seconds, key=lambda name: trials.seconds[name]))[1]
    groups = -(-most // best)
    rate(3 * groups // 2)
    rate(max(1, 3 * groups // 4))


def _parts(name: str) -> tuple[str, int]:
    backend, _, lanes = name.partition(":")
    return backend, int(lanes)


def _fastest(seconds: dict[str, float]) -> str:
    """The candidate with most lanes among those that are as fast as the fastest, but for noise."""
    close = [name for name, value in seconds.items() if value <= ALIKE * min(seconds.values())]
    return max(close, key=lambda name: _parts(name)[1])


class _Trials:
    """What was measured of each candidate `backend:lanes`: `seconds` of a client's step, infinite without memory."""

    def __init__(self, workshop: Workshop, rehearsal: Rehearsal) -> None:
        self.workshop, self.rehearsal = workshop, rehearsal
        self.seconds: dict[str, float] = {}

    def time(self, backend: str, lanes: int) -> float:
        """A candidate by itself: one group's first steps, the fastest of four trials."""
        known = min(self.seconds.values(), default=0.0) * lanes
        steps = TIMED_STEPS if not known else max(1, min(TIMED_STEPS, int(LONG_TRIAL / 2 / known)))
        name, timed = f"{backend}:{lanes}", list[float]()
        try:
            made = self._made(name)
            while made and len(timed) < 5:  # the first warms up
                timed.append(self.rehearsal.seconds(made, lanes, steps))
                if sum(timed) * lanes * steps > LONG_TRIAL and len(timed) > 1:
                    break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            timed = []
        self.seconds[name] = min(timed[1:], default=float("inf"))
        return self.seconds[name]

    def finals(self) -> None:
        """The candidates close to the fastest, in turn, each with the same clients: all of a round, if it is short.

        They stand in memory together; what does not fit beside the fastest is left out.
        """
        names = self._finalists()
        if len(names) < 2:
            return
        clients, steps, trials = self._extent(names)
        timed: dict[str, list[float]] = {name: [] for name in names}
        try:
            backends = {name: made for name in names if (made := self._made(name))}
            for turn in range(trials + 1):  # the first warms up
                for name, backend in backends.items():
                    value = self.rehearsal.seconds(backend, clients, steps)
                    timed[name] += [value] if turn else []
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return
        self.seconds |= {name: min(values) for name, values in timed.items()}
        # Those that were left out were measured otherwise: they must not win by it.
        behind = max(self.seconds[name] for name in names)
        self.seconds |= {n: max(v, behind) for n, v in self.seconds.items() if n not in timed}

    def _finalists(self) -> list[str]:
        chosen: list[str] = []
        for name in sorted(self.seconds, key=lambda each: self.seconds[each]):
            close = self.seconds[name] <= CLOSE * min(self.seconds.values()) < float("inf")
            if close and len(chosen) < FINALISTS and self.workshop.fits(*[_parts(n)[1] for n in [*chosen, name]]):
                chosen.append(name)
        return chosen

    def _extent(self, names: Sequence[str]) -> tuple[int, int, int]:
        """Clients, steps and number of trials, so that all take about FINAL_SECONDS or less."""
        rate, (least, most) = min(self.seconds.values()), FINAL_TRIALS
        each = FINAL_SECONDS / len(names) / (least + 1)
        clients, rehearsal = len(self.rehearsal.cohort), self.rehearsal
        if rate * rehearsal.num_steps(clients) > each:
            clients = min(clients, max(_parts(name)[1] for name in names))
        whole = rate * rehearsal.num_steps(clients)
        longest = rehearsal.plan(rehearsal.cohort[:1]).total_steps
        steps = longest if whole <= each else max(1, int(longest * each / whole))
        trial = whole * steps / longest
        return clients, steps, max(least, min(most, int(FINAL_SECONDS / len(names) / max(trial, 1e-9)) - 1))

    def _made(self, name: str) -> Backend | None:
        """The backend; None where it cannot run the model and `loop` would stand in for it."""
        backend, lanes = _parts(name)
        made = self.workshop.make(backend, lanes)
        return None if isinstance(made, LoopBackend) and backend != "loop" else made


def cached_choice(workshop: Workshop, choose: Callable[[], Choice]) -> Choice:
    """The choice that this machine made for such a model, shapes and device before, or a new one, which is kept."""
    relevant = {
        "model": workshop.layout.describe(),
        "image": list(workshop.data.image_shape),
        "method": workshop.method.name,
        "round": workshop.round_lanes,
        "device": [device_name(workshop.like.device), torch.get_num_threads()],
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
    except (UserError, OSError, KeyError, TypeError, ValueError):
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
