"""Work of the main rank alone that the others wait for, however long it takes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TypeVar

from fedscale.distributed.mesh import Mesh
from fedscale.errors import Stopped
from fedscale.session import Flag, Session

T = TypeVar("T")
BEAT = 1.0  # seconds between the main rank's signs of life, at most as often as its work looks for a stop
WORKING, DONE, STOPPED = "working", "done", "stopped"


def by_main(mesh: Mesh, session: Session, work: Callable[[Session], T]) -> T | None:
    """What `work` gives on the main rank, None on the others, which wait for it; every rank calls it.

    Its session is asked to stop when any rank's is. A rank waits at most the mesh's timeout for a sign of life, which
    is given whenever the work looks at `stop_requested`. Raises what the work raises: Stopped on all ranks; of another
    error they learn as of a lost rank.
    """
    if mesh.world == 1:
        return work(session)
    if not mesh.is_main:
        state = WORKING
        while state == WORKING:
            state = mesh.gather_objects((WORKING, session.stop_requested))[0][0]
        if state == STOPPED:
            raise Stopped("stopped, as the main rank was")
        return None
    try:
        result = work(dataclasses.replace(session, stop=_AnyRanks(mesh, session.stop)))
    except Stopped:
        mesh.gather_objects((STOPPED, True))
        raise
    mesh.gather_objects((DONE, False))
    return result


class _AnyRanks:
    """The main rank's stop flag, which looks at those of the others from time to time."""

    def __init__(self, mesh: Mesh, own: Flag) -> None:
        self._mesh, self._own = mesh, own
        self._others, self._last = False, time.monotonic()

    def set(self) -> None:
        self._own.set()

    def is_set(self) -> bool:
        if time.monotonic() - self._last >= BEAT:
            told = self._mesh.gather_objects((WORKING, self._own.is_set()))
            self._others = any(stop for _, stop in told)
            self._last = time.monotonic()
        return self._others or self._own.is_set()
