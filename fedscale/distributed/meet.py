"""How the ranks find one another: the store at rank 0 (or in torchrun's agent), and who is there on which card."""

from __future__ import annotations

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
    UserError when the port is taken.
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
    patience = timedelta(seconds=timeout)
    # multi_tenant: a second mesh in this process shares the server, should the first one's still be there.
    store: dist.Store = dist.TCPStore(
        place.address or "",
        place.port,
        place.world,
        _holds_store(place),
        patience,
        wait_for_workers=False,
        multi_tenant=True,
    )
    return store if place.attempt is None else dist.PrefixStore(f"attempt{place.attempt}", store)


def _holds_store(place: Place) -> bool:
    return place.rank == 0 and place.attempt is None


def _introduce(store: dist.Store, place: Place, device: torch.device, timeout: float, stage: str) -> Meeting:
    # Torchrun's store outlives a mesh: the keys of the next one must not meet those of the last.
    store = dist.PrefixStore(f"mesh{store.add(f'opened/{place.rank}', 1)}", store)
    keys = [f"host/{rank}" for rank in range(place.world)]
    store.set(keys[place.rank], f"{socket.gethostname()} {_card(device)}")
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except dist.DistStoreError as error:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        raise RankLost(
            f"{stage}: rank {missing[0] if missing else '?'} did not come to the start within {timeout:.0f} s; "
            f"{place.world - len(missing)} of {place.world} ranks are there; see that rank's own output"
        ) from error
    hosts, cards = zip(*(value.decode().split(" ") for value in store.multi_get(keys)), strict=True)
    return Meeting(store, hosts, cards, _holds_store(place))


def _card(device: torch.device) -> str:
    """A name of the device that no other card anywhere has, however few of them a rank is given to see."""
    if device.type != "cuda":
        return device.type
    return f"{device.type}-{torch.cuda.get_device_properties(device).uuid}"
