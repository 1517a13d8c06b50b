"""Ranks wait for what the main one does alone, and a stop of any of them reaches it."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscale.distributed import waiting
from fedscale.distributed.mesh import Mesh, RankLost
from fedscale.distributed.waiting import by_main
from fedscale.errors import Stopped
from fedscale.session import Session
from tests.ranks import ranks

RANK = """
import json, sys, time
from pathlib import Path
import torch
from fedscale.distributed.mesh import open_mesh
from fedscale.errors import Stopped
from fedscale.distributed import waiting
from fedscale.session import Session

torch.set_num_threads(1)
waiting.BEAT = 0.2

def long(session):
    "Longer than a rank waits for another, and without a look at the stop."
    time.sleep(4)
    return 42

def until_stopped(session):
    while not session.stop_requested:
        pass
    raise Stopped("as asked")

with open_mesh(torch.device("cpu"), 1, 3, print, "test") as mesh:
    mesh.barrier("the start")
    session = Session()
    given = waiting.by_main(mesh, session, long)
    if not mesh.is_main:
        session.stop.set()
    try:
        waiting.by_main(mesh, session, until_stopped)
        stopped = False
    except Stopped:
        stopped = True
    Path(sys.argv[1], f"{mesh.rank}.json").write_text(json.dumps([given, stopped, session.stop.is_set()]))
"""


LOSS = """
import os, sys
import torch
from fedscale.distributed.mesh import open_mesh
from fedscale.errors import Stopped
from fedscale.distributed import waiting
from fedscale.session import Session

torch.set_num_threads(1)
waiting.BEAT = 0.2

def work(session):
    while not session.stop_requested:
        if sys.argv[1] == "main":
            raise ValueError("the shard is broken")
    raise Stopped("as asked")

with open_mesh(torch.device("cpu"), 1, 30, print, "test") as mesh:
    mesh.barrier("the start")
    if not mesh.is_main and sys.argv[1] == "other":
        os._exit(9)
    waiting.by_main(mesh, Session(), work)
"""


class Others:
    """Stands for the main rank's mesh of two; the other one's stop flags are `answers`, or an error that is raised."""

    world, is_main = 2, True

    def __init__(self, *answers: bool | Exception) -> None:
        self._answers = list(answers)
        self.told: list[str] = []
        self.all_given = threading.Event()

    def gather_objects(self, item: tuple[str, bool]) -> list[tuple[str, bool]]:
        self.told.append(item[0])
        answer = self._answers.pop(0) if self._answers else False
        if not self._answers:
            self.all_given.set()
        if isinstance(answer, Exception):
            raise answer
        return [item, (waiting.WORKING, answer)]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "BEAT", 0.001)


def until_stopped(session: Session) -> None:
    end = time.monotonic() + 20
    while not session.stop_requested:
        assert time.monotonic() < end
    raise Stopped("as asked")


def test_alone_the_work_is_simply_done() -> None:
    session = Session()
    assert by_main(Mesh(), session, lambda given: given is session)


def test_signs_of_life_are_given_while_the_work_looks_at_nothing_and_none_after_its_end() -> None:
    mesh = Others(False, False, False)
    assert by_main(mesh, Session(), lambda session: mesh.all_given.wait(20))
    assert mesh.told[:3] == [waiting.WORKING] * 3 and mesh.told[-1] == waiting.DONE
    assert set(mesh.told[:-1]) == {waiting.WORKING}


def test_a_stop_of_another_rank_reaches_the_work() -> None:
    mesh, session = Others(False, True), Session()
    with pytest.raises(Stopped, match="as asked"):
        by_main(mesh, session, until_stopped)
    assert mesh.told[-1] == waiting.STOPPED and not session.stop.is_set()


@pytest.mark.parametrize("work", [until_stopped, lambda session: None], ids=["that looks", "that does not"])
def test_a_lost_rank_is_what_is_raised_when_the_work_has_ended(work: Callable[[Session], None]) -> None:
    mesh = Others(RankLost("rank 1 was lost"))

    def after_the_loss(session: Session) -> None:
        assert mesh.all_given.wait(20)
        work(session)

    with pytest.raises(RankLost, match="rank 1"):
        by_main(mesh, Session(), after_the_loss)
    assert mesh.told == [waiting.WORKING], "nobody answers any more"


@pytest.mark.parametrize("answer", [False, RankLost("rank 1 was lost")], ids=["all there", "a rank lost"])
def test_the_works_own_error_is_raised_and_the_thread_is_gone(answer: bool | Exception) -> None:
    mesh = Others(answer)

    def work(session: Session) -> None:
        assert mesh.all_given.wait(20)
        raise ValueError("the shard is broken")

    before = threading.enumerate()
    with pytest.raises(ValueError, match="broken"):
        by_main(mesh, Session(), work)
    assert set(mesh.told) == {waiting.WORKING} and threading.enumerate() == before


@pytest.mark.slow
def test_ranks_wait_beyond_their_timeout_and_all_stop_when_one_is_asked_to(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    done = ranks(2, script, tmp_path, seconds=120)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told == [[42, True, False], [None, True, True]]


@pytest.mark.slow
@pytest.mark.parametrize(("who", "said"), [("main", "ended with ValueError: the shard is broken"), ("other", "rank 1")])
def test_an_error_of_the_work_and_a_lost_rank_end_all(who: str, said: str, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(LOSS)
    done = ranks(2, script, who, seconds=120)
    assert done.returncode not in (0, -9), done.stderr[-3000:]
    assert "RankLost" in done.stderr and said in done.stderr, done.stderr[-3000:]
