"""Work that cannot save half of itself, but must clean up when it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedscale.errors import Stopped


@contextmanager
def stopped_by_signals(what: str) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise Stopped; the second one acts as it would have without us.

    Signals that are ignored stay so (a worker's parent listens in its place), and threads other than the main one get
    none.
    """
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)]

    def restore() -> None:
        for number in ours:
            signal.signal(number, previous[number])

    def on_signal(number: int, frame: FrameType | None) -> None:
        restore()
        raise Stopped(f"{what} stopped by {signal.Signals(number).name}, nothing is left of it")

    for number in ours:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        restore()
