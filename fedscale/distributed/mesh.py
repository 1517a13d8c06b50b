"""The processes of a run as a mesh, clients × shard: independent clients along one axis, a model's slices along the
other. Stages 1 and 3 use it with shard = 1, for who is there, what all agree on, and who is lost.

Ranks of one shard row are neighbours, so that a model is cut within a host. Every rank calls every method, in the same
order. Alone, a process has the same methods and no process group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from fedscale.distributed.launch import this_place
from fedscale.distributed.links import Links, abort_groups, close_groups, open_links
from fedscale.distributed.meet import meet
from fedscale.distributed.watch import RankLost, Watch
from fedscale.errors import UserError

__all__ = ["Mesh", "RankLost", "open_mesh", "rows_of"]


@dataclass(frozen=True)
class Mesh:
    """Rank `rank` of `world`, which is `clients` × `shard`. Any collective raises RankLost, naming the rank."""

    rank: int = 0
    world: int = 1
    shard: int = 1
    local_rank: int = 0
    local_world: int = 1
    host: str = "localhost"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _links: Links | None = None

    @property
    def clients(self) -> int:
        """How many groups of clients are trained side by side."""
        return self.world // self.shard

    @property
    def client_index(self) -> int:
        """Which of `clients` this rank is in."""
        return self.rank // self.shard

    @property
    def shard_index(self) -> int:
        """Which slice of the model this rank holds."""
        return self.rank % self.shard

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes and reports."""
        return self.rank == 0

    @cached_property
    def device_mesh(self) -> DeviceMesh:
        """The axes `clients` and `shard` for FSDP2, on this mesh's own groups; there is none unless shard > 1."""
        assert self._links is not None and self._links.over_shard is not None, "nothing is cut: shard is 1"
        groups = [self._links.over_clients, self._links.over_shard]
        ranks = torch.arange(self.world).view(self.clients, self.shard)
        return DeviceMesh.from_group(groups, self.device.type, mesh=ranks, mesh_dim_names=("clients", "shard"))

    def sum_over_clients(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum in place over the ranks that hold the same slice; contiguous, float32, float64 or int64. Returns it."""
        if self._links is None or self.clients == 1:
            return tensor
        with self._collective("the sum over clients") as links:
            carried = self._carried(tensor)
            dist.all_reduce(carried, group=links.over_clients)
        return tensor if carried is tensor else tensor.copy_(carried)

    def reduce_scatter_over_clients(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum's rows of this rank, [n] → [ceil(n / clients)], zeros behind the end; see `rows_of`.

        Over gloo it takes as long as the whole sum (torch 2.15 makes it from one); it then saves memory alone.
        """
        if self._links is None or self.clients == 1:
            return tensor
        rows = -(-len(tensor) // self.clients)
        padded = torch.nn.functional.pad(tensor, (0, rows * self.clients - len(tensor)))
        with self._collective("the sum over clients") as links:
            carried = self._carried(padded)
            part = carried.new_empty(rows)
            dist.reduce_scatter_tensor(part, carried, group=links.over_clients)
        return part.to(tensor.device)

    def gather_over_clients(self, part: torch.Tensor, n: int) -> torch.Tensor:
        """The inverse: the parts of all ranks that hold the same slice, [ceil(n / clients)] → [n]."""
        if self._links is None or self.clients == 1:
            return part
        with self._collective("the gathering over clients") as links:
            carried = self._carried(part)
            whole = carried.new_empty(len(part) * self.clients)
            dist.all_gather_into_tensor(whole, carried, group=links.over_clients)
        return whole[:n].to(part.device)

    def sum_over_shard(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum in place over the row of ranks that share one client's model. Returns it."""
        if self._links is None or self.shard == 1:
            return tensor
        with self._collective("the sum over a shard row") as links:
            carried = self._carried(tensor)
            dist.all_reduce(carried, group=links.over_shard)
        return tensor if carried is tensor else tensor.copy_(carried)

    def gather_over_shard(self, part: torch.Tensor) -> torch.Tensor:
        """The parts of the row's ranks one after another, [n] → [shard · n]."""
        if self._links is None or self.shard == 1:
            return part
        with self._collective("the gathering over a shard row") as links:
            carried = self._carried(part)
            whole = carried.new_empty(len(part) * self.shard)
            dist.all_gather_into_tensor(whole, carried, group=links.over_shard)
        return whole.to(part.device)

    def gather_objects(self, item: Any) -> list[Any]:
        """The items of all ranks in their order, on every rank; pickled, so for small things."""
        if self._links is None:
            return [item]
        items: list[Any] = [None] * self.world
        with self._collective("the gathering of objects", control=True) as links:
            dist.all_gather_object(items, item, group=links.control)
        return items

    def gather_in_column(self, item: Any) -> list[Any]:
        """The items of all ranks that hold the same slice, by client index; every rank of the world calls it."""
        return self.gather_objects(item)[self.shard_index :: self.shard]

    def broadcast_object(self, item: Any) -> Any:
        """Rank 0's item, on every rank; pickled, so for small things."""
        if self._links is None:
            return item
        items = [item]
        with self._collective("a message of rank 0", control=True) as links:
            dist.broadcast_object_list(items, src=0, group=links.control)
        return items[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank, the same answer on all (a signal may reach only one)."""
        if self._links is None:
            return flag
        count = torch.tensor(int(flag))
        with self._collective("a stop flag", control=True) as links:
            dist.all_reduce(count, group=links.control)
        return bool(count)

    def barrier(self, what: str) -> None:
        """Wait for all ranks at `what` (`round 12`), which is how later errors name the place."""
        if self._links is not None:
            with self._links.watch.collective(what, mark=True):
                dist.monitored_barrier(self._links.control, self._links.timeout)

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Runs collectives of others in it (a training step's): one that breaks raises RankLost, naming the rank."""
        if self._links is None:
            yield
            return
        with self._links.watch.collective(what, mark=True):
            yield

    @contextmanager
    def _collective(self, what: str, control: bool = False) -> Iterator[Links]:
        assert self._links is not None
        # Without gradients: gloo's gathering refuses its own views otherwise (torch 2.15, beside FSDP2's groups).
        with torch.no_grad(), self._links.watch.collective(what):
            if self._links.nccl and not control:
                # NCCL never says who is missing, and ends the process after a timeout: let all be there before.
                dist.monitored_barrier(self._links.control, self._links.timeout)
            yield self._links

    def _carried(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor where its collective takes place: NCCL's on the device, gloo's on the CPU."""
        assert self._links is not None and tensor.is_contiguous()
        return tensor.to(self.device) if self._links.nccl else tensor.cpu()


def rows_of(total: int, index: int, parts: int) -> slice:
    """Part `index` of `total` rows in `parts` contiguous ones of ceil(total / parts); the last ones may be shorter."""
    rows = -(-total // parts)
    return slice(min(index * rows, total), min((index + 1) * rows, total))


@contextmanager
def open_mesh(
    device: torch.device, shard: int, timeout_seconds: float, say: Callable[[str], None], stage: str = "federate"
) -> Iterator[Mesh]:
    """The mesh of this launch (see `launch.this_place`), closed at the end also when a rank is dead.

    A collective waits at most `timeout_seconds` for the slowest rank, the start longer (`meet.START`). A default
    process group that exists is used and kept. `say` takes one line from rank 0, `stage` is named in errors. Raises
    UserError when `shard` does not divide the world.
    """
    place, found = this_place(), dist.is_initialized()
    if found:
        place = replace(place, rank=dist.get_rank(), world=dist.get_world_size())
    if place.world % shard:
        raise UserError(
            f"federate.shard={shard}: {place.world} ranks were launched, which it does not divide; "
            f"launch a multiple of {shard}, or set federate.shard=1"
        )
    if place.world == 1:
        yield Mesh(device=device)
        return
    meeting = meet(place, device, timeout_seconds, stage)
    groups: list[dist.ProcessGroup] = []
    watch = Watch(
        meeting.store, place.rank, meeting.hosts, meeting.holds_store, timeout_seconds, stage,
        wake=lambda: abort_groups(groups),
    )  # fmt: skip
    failed = False
    try:
        with watch.collective("the start", mark=True):
            links = open_links(meeting, watch, groups, place.rank, shard, device, timeout_seconds, say)
        host, local = meeting.hosts[place.rank], (place.local_rank, place.local_world)
        if place.local_world == 1:  # as far as the launcher told
            local = meeting.hosts[: place.rank].count(host), meeting.hosts.count(host)
        yield Mesh(place.rank, place.world, shard, *local, host, device, links)
    except BaseException as error:
        failed = True
        watch.tell(error)
        raise
    finally:
        close_groups(groups, not found, failed)
        watch.leave(failed)
