"""A stage's folder for one job alone: the main rank holds its lock, and the others learn what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from fedscale import lock
from fedscale.distributed.mesh import open_mesh
from fedscale.distributed.waiting import by_main
from fedscale.lock import Owner
from fedscale.runs import StageFolder
from fedscale.session import Either, Flag, Session


@contextmanager
def alone(
    folder: StageFolder, stage: str, session: Session, work: str, wait: bool | None, timeout: float
) -> Iterator[Session | None]:
    """Within the block no other job works on the opened folder; None where another has completed it meanwhile.

    `work` names the run. Another job that has the folder is waited for where `wait` says so; None: where it works for
    another run, which shares the folder. Else raises UserError, naming it. The yielded session also stops when the lock
    is lost. Every rank calls it; `timeout` is for a sign of life of the slowest, however long it waits.
    """

    def waits(owner: Owner) -> bool:
        return bool(owner.work) and owner.work != work if wait is None else wait

    with ExitStack() as stack:
        lost: list[Flag] = []

        def enter(session: Session) -> bool:
            lost.append(stack.enter_context(lock.held(folder.lock, folder.path, session, work, waits)))
            if folder.complete:
                return False
            folder.open()
            return True

        with open_mesh(torch.device("cpu"), 1, timeout, session.reporter.say, stage) as mesh:
            entered = mesh.broadcast_object(by_main(mesh, session, enter))
        yield replace(session, stop=Either(session.stop, lost[0]) if lost else session.stop) if entered else None
