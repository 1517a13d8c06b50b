"""What every stage is given beside its config: where to report to, and whether it was asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from types import FrameType
from typing import Protocol

from fedscale.progress import Reporter, SilentReporter


class Flag(Protocol):
    """A `threading.Event`, or a `multiprocessing.Event` shared with worker processes."""

    def set(self) -> None: ...
    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Either:
    """Set when either flag is."""

    first: Flag
    second: Flag

    def set(self) -> None:
        self.first.set()

    def is_set(self) -> bool:
        return self.first.is_set() or self.second.is_set()


@dataclass
class Session:
    """One process's session. A stage looks at `stop_requested` after each step, saves its state and raises Stopped."""

    reporter: Reporter = field(default_factory=SilentReporter)
    stop: Flag = field(default_factory=Event)

    @property
    def stop_requested(self) -> bool:
        return self.stop.is_set()

    @contextmanager
    def stopping_on(self, *signals: signal.Signals) -> Iterator[None]:
        """Within the block the first of the signals asks for a stop; the next one acts as it would have without us.

        But not SIGTERM: one order to stop arrives several times, because Slurm tells every process of a step, and the
        launcher among them its ranks once more. Who will not wait has SIGINT and SIGKILL.
        """
        previous = {number: signal.getsignal(number) for number in signals}
        asked = False

        def restore(*numbers: signal.Signals) -> None:
            for number in numbers:
                signal.signal(number, previous[number])

        def on_signal(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            if asked:  # perhaps in the middle of what follows, which holds locks that are not re-entrant
                return
            asked = True
            self.stop.set()
            restore(*(one for one in signals if one != signal.SIGTERM))
            self.reporter.say(f"{signal.Signals(number).name}: stopping at the next step; SIGINT stops at once")

        for number in signals:
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            restore(*signals)
