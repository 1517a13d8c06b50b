"""Python's cyclic garbage collector, paused while very many objects are made that live on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic collection within the block.

    It would walk through all that was made so far again and again, in vain: half the time of reading a manifest and
    markers of 100,000 shards. Reference counting goes on; threads share the pause.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
