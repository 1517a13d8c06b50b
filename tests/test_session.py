"""How a signal becomes a request to stop."""

import os
import signal
import threading

import pytest

from fedscale.session import Session


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch):
    """Signals that reach whoever listened before the session did."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_told_again_by_a_launcher_is_the_same_request(watched: list[int]) -> None:
    session = Session()
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert session.stop_requested and watched == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert watched == [signal.SIGTERM], "outside the block it means what it did"


class Told:
    """A flag that is told once more while it is being set, with its lock held."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0

    def set(self) -> None:
        assert self.lock.acquire(timeout=1), "set within set: a threading.Event would wait for itself"
        os.kill(os.getpid(), signal.SIGTERM)
        self.calls += 1
        self.lock.release()

    def is_set(self) -> bool:
        return self.calls > 0


def test_a_second_sigterm_in_the_middle_of_the_first_waits_for_nothing(watched: list[int]) -> None:
    session = Session(stop=Told())
    with session.stopping_on(signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)
        assert session.stop_requested and session.stop.calls == 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_sigint_after_the_first_signal_stops_at_once(watched: list[int], first: signal.Signals) -> None:
    session = Session()
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), first)
        assert session.stop_requested and watched == []
        os.kill(os.getpid(), signal.SIGINT)
        assert watched == [signal.SIGINT]
