"""Signs of life, on a store that is a stand-in: what a mesh of real ranks makes of them is in `test_mesh`."""

import threading
import time
from typing import Any

from fedscale.distributed.watch import Watch


class Slow:
    """A store that takes its time with every beat."""

    def __init__(self) -> None:
        self.beating = threading.Event()

    def clone(self) -> "Slow":
        return self

    def set(self, key: str, value: str) -> None:
        if key.startswith("beat/") and value != "0":
            self.beating.set()
            time.sleep(0.5)

    def check(self, keys: list[str]) -> bool:
        return False


def test_who_has_left_has_no_thread_in_the_store_that_the_interpreters_end_would_meet() -> None:
    store: Any = Slow()
    watch = Watch(store, 0, ["here"], holds_store=False, timeout=5)
    assert store.beating.wait(10)
    watch.leave(failed=False)
    assert "signs of life" not in [thread.name for thread in threading.enumerate()]
