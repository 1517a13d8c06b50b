"""Ranks find one another on a store that outlives them, as the one in torchrun's agent outlives ranks started again."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from fedscale.distributed import meet as meeting
from fedscale.distributed.launch import Place
from fedscale.distributed.meet import Meeting, meet
from fedscale.distributed.watch import RankLost
from fedscale.errors import UserError

CPU = torch.device("cpu")
WORLD = 3


@pytest.fixture
def agent() -> dist.TCPStore:
    """The store in torchrun's agent."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def started(pool: ThreadPoolExecutor, agent: dist.TCPStore, rank: int) -> Future[Meeting]:
    return pool.submit(meet, Place(rank, WORLD, rank, WORLD, "127.0.0.1", agent.port, hosted=True), CPU, 60.0)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_ranks_that_are_started_again_meet_one_another_and_not_those_before(agent):
    """In whatever order they come, and whatever number of restarts their agents have counted."""
    with ThreadPoolExecutor(WORLD) as pool:
        for start, order in enumerate([(0, 1, 2), (2, 1, 0), (1, 0, 2)]):
            ranks = {}
            for rank in order:
                ranks[rank] = started(pool, agent, rank)
                threading.Event().wait(0.2)  # the others come a little later
            met = [ranks[rank].result(timeout=60) for rank in range(WORLD)]
            assert all(len(one.hosts) == WORLD and not one.holds_store for one in met)
            assert not met[0].store.check(["start"]), "the keys of the start before are elsewhere"
            met[0].store.set("start", str(start))
            assert {one.store.get("start") for one in met} == {str(start).encode()}


def test_a_rank_that_answered_and_died_is_not_taken_for_the_one_that_follows_it(agent):
    """A start was broken off in the middle: rank 0 had called, rank 1 answered, and rank 2 never came."""
    agent.set("call", "before")
    agent.set("before/answer/1", '["killed", "elsewhere", "cpu"]')
    with ThreadPoolExecutor(WORLD) as pool:
        ranks = {rank: started(pool, agent, rank) for rank in (2, 1)}
        wait_until(lambda: agent.check(["before/answer/2"]))  # all have answered the call of one who is gone
        ranks[0] = started(pool, agent, 0)
        met = [ranks[rank].result(timeout=60) for rank in range(WORLD)]
        assert all("elsewhere" not in one.hosts for one in met)
        met[1].store.set("word", "heard")
        assert met[0].store.get("word") == met[2].store.get("word") == b"heard"


def test_the_missing_rank_is_named_by_the_others_though_its_forerunner_was_there(agent, monkeypatch):
    with ThreadPoolExecutor(WORLD) as pool:
        for one in [started(pool, agent, rank) for rank in range(WORLD)]:
            one.result(timeout=60)
        monkeypatch.setattr(meeting, "START", 1.0)
        for missing in (0, 2):
            there = [rank for rank in range(WORLD) if rank != missing]
            places = [Place(rank, WORLD, rank, WORLD, "127.0.0.1", agent.port, hosted=True) for rank in there]
            for one in [pool.submit(meet, place, CPU, 1.0) for place in places]:
                with pytest.raises(RankLost, match=f"rank {missing} did not come to the start within 1 s"):
                    one.result(timeout=60)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_nobody_knows_is_one_line_at_once(rank, monkeypatch):
    monkeypatch.setattr(meeting, "START", 5.0)
    monkeypatch.setattr(meeting, "NAMED", 0.3)
    named = r"^launcher: node\.invalid, the host of rank 0, is unknown on .*; expected .*: set MASTER_ADDR to one$"
    with pytest.raises(UserError, match=named):
        meet(Place(rank, 2, rank, 2, "node.invalid", 15_000), CPU, 5.0)


def test_a_host_whose_name_is_known_a_moment_later_is_found(agent, monkeypatch):
    asked = []

    def known_later(*words):
        asked.append(words)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "not yet")

    monkeypatch.setattr(meeting.socket, "getaddrinfo", known_later)
    with ThreadPoolExecutor(WORLD) as pool:
        ranks = [started(pool, agent, rank) for rank in range(WORLD)]
        assert {len(rank.result(timeout=60).hosts) for rank in ranks} == {WORLD}
    assert set(asked) == {("127.0.0.1", agent.port)} and len(asked) >= 3
