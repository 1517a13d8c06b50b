"""How the ranks find one another: the store at rank 0 (or in torchrun's agent), and who is there on which card."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from fedscale.distributed.launch import Place
from fedscale.distributed.watch import RankLost
from fedscale.errors import UserError

START = 300.0  # seconds: ranks load libraries and data sets at different speeds, which says nothing of a round
NAMED = 5.0  # seconds that a host's name has to become known, as that of a node which has just come up
POLL = 0.1  # seconds between two looks at the store
CALL = "call"  # where the store has the newest call of a rank 0

Roll = list[list[str]]  # of each rank its name, its host, its card


@dataclass(frozen=True)
class Meeting:
    """The store of one mesh, and of each rank its host and the card that it computes on (`cpu`: none).

    `holds_store`: the store's server lives in this process.
    """

    store: dist.Store
    hosts: Sequence[str]
    cards: Sequence[str]
    holds_store: bool


def meet(place: Place, device: torch.device, timeout: float, stage: str = "federate") -> Meeting:
    """Come together with the other ranks, through the default group's store if there is one.

    It takes at most `timeout` seconds, or START where that is more. Raises RankLost naming a rank that does not come,
    UserError when the port is taken, or the name of rank 0's host unknown.
    """
    timeout = max(timeout, START)
    end = time.monotonic() + timeout
    while True:
        left = max(0.5, end - time.monotonic())
        try:
            found = dist.is_initialized()
            store = dist.distributed_c10d._get_default_store() if found else _connect(place, left)
            return _introduce(store, place, device, left, stage)
        except dist.DistError as error:
            if place.rank == 0 and "EADDRINUSE" in str(error):
                raise UserError(
                    f"launcher: port {place.port} of {place.address} is in use; set another MASTER_PORT, on all ranks"
                ) from error
            # The store may be that of a mesh which rank 0 is just closing: come again, in a moment.
            if time.monotonic() >= end:
                raise RankLost(
                    f"{stage}: rank 0 does not answer at {place.address}, port {place.port}, within {timeout:g} s; "
                    "see whether it runs, and whether MASTER_ADDR is its host as seen from here"
                ) from error
            time.sleep(0.2)


def _connect(place: Place, timeout: float) -> dist.Store:
    _look_up(place)
    # multi_tenant: a second mesh in this process shares the server, should the first one's still be there.
    return dist.TCPStore(
        place.address or "",
        place.port,
        place.world,
        _holds_store(place),
        timedelta(seconds=timeout),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _look_up(place: Place) -> None:
    """Raises UserError where the address is a name that stays unknown; torch would ask for it to the end."""
    end = time.monotonic() + NAMED
    while True:
        try:
            socket.getaddrinfo(place.address, place.port)
            return
        except socket.gaierror as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"launcher: {place.address}, the host of rank 0, is unknown on {socket.gethostname()} "
                    f"({error.strerror}); expected a name or address that all ranks reach: set MASTER_ADDR to one"
                ) from error
        time.sleep(POLL)


def _holds_store(place: Place) -> bool:
    return place.rank == 0 and not place.hosted


def _introduce(store: dist.Store, place: Place, device: torch.device, timeout: float, stage: str) -> Meeting:
    """Rank 0 calls under a name that was never used, the others answer that call, and rank 0 opens to who answered.

    For torchrun's store outlives its ranks: what is found there may be of some that are gone. Its agents give no number
    that tells one start from another: each counts the restarts that its own ranks caused (torch 2.15,
    `elastic/agent/server/api.py`, `_invoke_run`), so two hosts disagree about it from the first one on.
    """
    name = secrets.token_hex(8)
    about = [name, socket.gethostname(), _card(device)]
    if place.rank == 0:
        call, roll = name, _call(store, name, about, place.world, timeout, stage)
    else:
        call, roll = _answer(store, name, about, place, timeout, stage)
    _, hosts, cards = zip(*roll, strict=True)
    return Meeting(dist.PrefixStore(call, store), hosts, cards, _holds_store(place))


def _call(store: dist.Store, call: str, about: list[str], world: int, timeout: float, stage: str) -> Roll:
    """Rank 0's part: the name, host and card of each rank, once all have answered."""
    store.set(CALL, call)
    keys = [f"{call}/answer/{rank}" for rank in range(1, world)]
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except dist.DistStoreError as error:
        raise _missing(store, call, world, timeout, stage) from error
    roll = [about, *(json.loads(answer) for answer in store.multi_get(keys))]
    store.set(f"{call}/roll", json.dumps(roll))
    for name, _, _ in roll:
        store.set(f"{call}/open/{name}", "")
    return roll


def _answer(
    store: dist.Store, name: str, about: list[str], place: Place, timeout: float, stage: str
) -> tuple[str, Roll]:
    """Another rank's part: (the call, the same roll). It answers the newest call until one opens to its name."""
    end, call = time.monotonic() + timeout, ""
    while time.monotonic() < end:
        newest = store.get(CALL).decode() if store.check([CALL]) else ""
        if newest != call:
            call = newest
            store.set(f"{call}/answer/{place.rank}", json.dumps(about))
        if call and store.check([f"{call}/open/{name}"]):
            return call, json.loads(store.get(f"{call}/roll"))
        time.sleep(POLL)
    raise _missing(store, call, place.world, timeout, stage)


def _missing(store: dist.Store, call: str, world: int, timeout: float, stage: str) -> RankLost:
    """Names the first rank that is not there. A call that all have answered is that of a rank 0 that is gone."""
    missing = [rank for rank in range(1, world) if not store.check([f"{call}/answer/{rank}"])] if call else []
    missing = missing or [0]
    return RankLost(
        f"{stage}: rank {missing[0]} did not come to the start within {timeout:.0f} s; "
        f"{world - len(missing)} of {world} ranks are there; see that rank's own output"
    )


def _card(device: torch.device) -> str:
    """A name of the device that no other card anywhere has, however few of them a rank is given to see."""
    if device.type != "cuda":
        return device.type
    return f"{device.type}-{torch.cuda.get_device_properties(device).uuid}"
