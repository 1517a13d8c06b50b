"""Work of the main rank alone that the others wait for, however long it takes."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from fedscale.distributed.mesh import Mesh
from fedscale.errors import Stopped
from fedscale.session import Either, Flag, Session

T = TypeVar("T")
BEAT = 1.0  # seconds between the main rank's signs of life
WORKING, DONE, STOPPED = "working", "done", "stopped"


def by_main(mesh: Mesh, session: Session, work: Callable[[Session], T]) -> T | None:
    """What `work` gives on the main rank, None on the others, which wait for it; every rank calls it.

    Its session is asked to stop when any rank's is, or when a rank is lost. It may take longer than the mesh's timeout,
    and makes no collective itself. Raises what the work raises: Stopped on all ranks; of another error they learn as of
    a lost rank.
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
        with _signs_of_life(mesh, session.stop) as stop:
            result = work(dataclasses.replace(session, stop=stop))
    except Stopped:
        mesh.gather_objects((STOPPED, True))
        raise
    mesh.gather_objects((DONE, False))
    return result


@contextmanager
def _signs_of_life(mesh: Mesh, own: Flag) -> Iterator[Flag]:
    """Gives them from a thread, and yields a flag for the main rank's work: any rank is asked to stop, or is lost.

    A rank that was lost is what is raised at the end, unless the work met an error of its own.
    """
    ended, asked = threading.Event(), threading.Event()
    lost: list[Exception] = []

    def give() -> None:
        try:
            while not ended.wait(BEAT):
                if any(stop for _, stop in mesh.gather_objects((WORKING, own.is_set()))):
                    asked.set()
        except Exception as error:  # RankLost; it would end this thread alone
            lost.append(error)
            asked.set()

    thread = threading.Thread(target=give, name="the main rank works", daemon=True)
    thread.start()
    stopped: Stopped | None = None
    try:
        yield Either(own, asked)
    except Stopped as error:
        stopped = error
    finally:
        ended.set()
        thread.join()  # what follows are collectives of the same group
    if lost:
        raise lost[0]
    if stopped:
        raise stopped
