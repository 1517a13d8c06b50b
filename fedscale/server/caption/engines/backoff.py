"""How long to wait before an endpoint is asked again: as long as it says, else ever longer and spread by chance."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

FIRST_SECONDS = 1.0  # before the second try; twice as long before each further one
LONGEST_SECONDS = 60.0
LONGEST_ASKED = 120.0  # an endpoint that asks for more is not waited for


def wait_seconds(tries: int, chance: float, headers: Mapping[str, str]) -> float | None:
    """Seconds until try number `tries` + 1, or None where the endpoint asks for more than LONGEST_ASKED.

    `chance` in [0, 1) takes up to half off an exponential wait, so that requests refused together do not return
    together; what the endpoint asks for (Retry-After, in seconds or as a date) is never undercut.
    """
    asked = _asked(headers)
    if asked is None:
        return min(FIRST_SECONDS * 2 ** (tries - 1), LONGEST_SECONDS) * (1 - chance / 2)
    return asked if asked <= LONGEST_ASKED else None


def _asked(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header; none when it is absent, in the past or unreadable."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        until, now = _moment(text), _moment(headers.get("date", ""))
        if until is None:
            return None
        # By the endpoint's own clock where it tells it: ours may be wrong, or jump.
        seconds = until - (time.time() if now is None else now)
    return seconds if seconds > 0 else None  # NaN is not


def _moment(date: str) -> float | None:
    """Seconds since 1970 of a header's date; None where it is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
