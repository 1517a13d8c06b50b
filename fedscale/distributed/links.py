"""The process groups of a mesh: which there are, through which backend, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fedscale.distributed.meet import Meeting
from fedscale.distributed.watch import ANSWER, Watch, within
from fedscale.errors import UserError


@dataclass(frozen=True)
class Links:
    """How ranks talk. `control` is gloo's, over the world; `over_shard` is None where nothing is cut.

    `nccl`: the backend of the other two, else gloo.
    """

    watch: Watch
    control: dist.ProcessGroup
    over_clients: dist.ProcessGroup
    over_shard: dist.ProcessGroup | None
    nccl: bool
    timeout: timedelta


def open_links(
    meeting: Meeting, watch: Watch, groups: list[dist.ProcessGroup], rank: int, shard: int,
    device: torch.device, timeout_seconds: float, say: Callable[[str], None],
) -> Links:  # fmt: skip
    """Make this rank's groups, and note in `groups` those that are to be closed, also when this breaks off.

    The default group is made where there is none. Raises UserError when some ranks compute on a GPU and some do not.
    """
    world, timeout = len(meeting.hosts), timedelta(seconds=timeout_seconds)
    nccl, remark = backend_for(meeting.cards)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # FSDP2 and NCCL take the current one
    made_here = not dist.is_initialized()
    if made_here:
        if remark and rank == 0:
            say(remark)
        dist.init_process_group(
            "nccl" if nccl else "gloo", store=meeting.store, rank=rank, world_size=world, timeout=timeout,
            device_id=torch.device("cuda", device.index or 0) if nccl else None,
        )  # fmt: skip
    else:
        nccl = nccl and "nccl" in str(dist.get_backend())

    def group(members: list[list[int]], backend: str) -> dist.ProcessGroup:
        """This rank's of the groups of these members; every rank takes part in making each of them."""
        mine: dist.ProcessGroup | None = None
        for ranks in members:
            made: Any = dist.group.WORLD
            if len(ranks) < world or not made_here or backend != dist.get_backend():
                made = dist.new_group(ranks, timeout, backend)  # a group that was found has a timeout of its own
            mine = made if rank in ranks else mine
        assert mine is not None
        groups.append(mine)
        return mine

    grid = torch.arange(world).view(-1, shard)
    backend = "nccl" if nccl else "gloo"
    control = group([list(range(world))], "gloo")
    over_clients = control if shard == 1 and not nccl else group(grid.T.tolist(), backend)
    over_shard = group(grid.tolist(), backend) if shard > 1 else None
    return Links(watch, control, over_clients, over_shard, nccl, timeout)


def backend_for(cards: Sequence[str]) -> tuple[bool, str]:
    """Whether NCCL serves ranks on these cards, else gloo, and what there is to say about it.

    Raises UserError when some ranks compute on a GPU and some do not.
    """
    distinct = len(set(cards))
    if "cpu" not in cards:
        shared = distinct < len(cards)  # NCCL refuses two ranks on one GPU
        return not shared, f"{len(cards)} ranks share {distinct} GPUs: collectives run through gloo" if shared else ""
    if distinct > 1:
        raise UserError(
            f"device=auto: rank {cards.index('cpu')} sees no GPU, others do; set device=cpu, or give it one"
        )
    return False, ""


def abort_groups(groups: list[dist.ProcessGroup]) -> None:
    """Break off what goes on in the groups: ranks that wait for this one wake."""
    for group in groups:
        group.abort()


def close_groups(groups: list[dist.ProcessGroup], default_too: bool, failed: bool) -> None:
    """Close the groups, the default one too or not, and with them the connections.

    With a peer dead or frozen that may hang (NCCL's would), so it is then given up after a while.
    """

    def close() -> None:
        if default_too and dist.is_initialized():
            _destroy_default_group()
        elif not default_too:
            for group in groups:
                dist.destroy_process_group(group)

    if failed:
        within(ANSWER, lambda: abort_groups(groups))
        within(ANSWER, close)
    else:
        close()


def _destroy_default_group() -> None:
    """Through DeepSpeed where it trained: else it keeps its groups of this world, and takes them in the next one."""
    deepspeed = sys.modules.get("deepspeed.comm")
    if deepspeed is not None and deepspeed.is_initialized():
        deepspeed.destroy_process_group()
    else:
        dist.destroy_process_group()
