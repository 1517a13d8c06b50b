"""How a signal becomes a request to stop."""

import os
import signal

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


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_sigint_after_the_first_signal_stops_at_once(watched: list[int], first: signal.Signals) -> None:
    session = Session()
    with session.stopping_on(signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), first)
        assert session.stop_requested and watched == []
        os.kill(os.getpid(), signal.SIGINT)
        assert watched == [signal.SIGINT]
