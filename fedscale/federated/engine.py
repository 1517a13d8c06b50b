"""One round, start to end: cohort → groups → placement → local training → one sum → the server's update.

Every rank runs the same lines and holds the same plan; which rank trains which group is the only thing that depends
on how many there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from fedscale.config.schema import Config
from fedscale.distributed.mesh import Mesh
from fedscale.errors import Diverged, UserError
from fedscale.federated.aggregation import check_used
from fedscale.federated.backends import Backend, Interrupted, RoundStart, Trained
from fedscale.federated.backends.memory import is_out_of_memory
from fedscale.federated.backends.trainer import row_size
from fedscale.federated.client_state import ClientStates
from fedscale.federated.clients import Surveyed
from fedscale.federated.cohort import CostModel, by_steps, groups_of, placement, sample_cohort
from fedscale.federated.data import RoundData
from fedscale.federated.flat import ModelHost
from fedscale.federated.kept import kept_size
from fedscale.federated.methods import Method, ServerWork
from fedscale.federated.methods.base import zeros
from fedscale.federated.plan import GroupPlan, local_steps, plan_group
from fedscale.federated.pool import Pool
from fedscale.federated.server import RoundSum, ServerState
from fedscale.rng import derive

TRAINED, DIVERGED = 1.0, 2.0  # a client's status in the record
SURVEYED = 8  # clients of a group that is surveyed


@dataclass(frozen=True)
class RoundResult:
    """What a round did, the same on every rank."""

    loss: float  # of the clients that count, weighted by samples
    clients: int  # that trained
    diverged: list[int]
    steps: int
    seconds: float  # this rank's wall time
    imbalance: float  # the busiest rank's seconds of training over the mean


@dataclass
class Engine:
    """The state of a federated run, and its rounds."""

    config: Config
    method: Method
    backend: Backend
    data: RoundData
    clients: Sequence[np.ndarray]  # each client's rows of the store
    host: ModelHost
    server: ServerState
    mesh: Mesh
    states: ClientStates | None = None
    pool: Pool | None = None  # the server's images
    teacher: Mapping[str, Tensor] = field(default_factory=dict)  # constants that the server's work is given
    interrupted: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.layout = self.host.layout
        self.costs = CostModel()
        self._sum: RoundSum | None = None
        # The tallies that clients keep, the same on every rank.
        self.kept = torch.zeros(len(self.clients), kept_size(self.method), dtype=torch.float64)
        self.method.first_shared(self.server.shared, derive(self.config.seed, "shared"))

    def cohort(self, number: int) -> list[int]:
        """The round's clients that have samples, the largest first."""
        settings = self.config.federate
        drawn = sample_cohort(self.config.seed, number, len(self.clients), settings.clients_per_round)
        held = [client for client in drawn if len(self.clients[client])]
        return by_steps(held, [len(self.clients[client]) for client in held])

    def plan(self, number: int, clients: Sequence[int]) -> GroupPlan:
        """The plan of a group of clients in a round."""
        settings = self.config.federate
        samples = [self.clients[client] for client in clients]
        return plan_group(self.config.seed, number, clients, samples, settings.batch_size, settings.local_epochs)

    @torch.no_grad()
    def round(self, number: int) -> RoundResult | None:
        """Carry out round `number`; None when it was interrupted on any rank, and nothing has changed.

        Raises UserError when every client diverged, RankLost when a rank is gone.
        """
        began = time.perf_counter()
        cohort = self.cohort(number)
        if not cohort:
            return RoundResult(0.0, 0, [], 0, time.perf_counter() - began, 1.0)
        asks = "round" in self.method.survey_at
        before = {name: tensor.clone() for name, tensor in self.server.shared.items() if asks}
        self.survey("round", number)
        groups = groups_of(cohort, self.backend.lanes)
        report = _Record(len(cohort), len(groups), self.mesh.clients, self.kept.shape[1])
        total = self.fresh_sum(report.size)
        weights = torch.tensor([self.method.weight(len(self.clients[c])) for c in cohort], dtype=torch.float64)
        weights /= weights.sum()
        placed = placement([self.costs.cost(self._steps(group)) for group in groups], self.mesh.clients)
        try:
            self._train(number, cohort, groups, placed[self.mesh.client_index], weights, total, report)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise self._explained(error) from error
        except Interrupted:
            report.interrupted[self.mesh.client_index] = 1.0
        report.used[self.mesh.client_index] = getattr(total.accumulator, "used", 0.0)
        total.fill_record(report.numbers)

        self.mesh.barrier(f"round {number}")
        sections = self.server.collect(total)
        report = report.of(total.record())
        if report.interrupted.any():
            if self.states:
                self.states.discard()
            for name, tensor in before.items():
                self.server.shared[name].copy_(tensor)
            return None
        check_used(float(report.used.sum()), self.config.federate.aggregate.fraction_bits)
        return self._finish(number, cohort, groups, placed, weights, total, sections, report, began)

    def fresh_sum(self, record: int) -> RoundSum:
        """The sum of a round, at zero, with room for a record of so many numbers."""
        size = self._sum.means + record if self._sum else -1
        if self._sum is None or len(self._sum.accumulator.vector) != size:
            settings = self.config.federate.aggregate
            self._sum = RoundSum(self.layout, self.mesh, self.method, record, settings, self.server.vector)
        self._sum.reset()
        return self._sum

    def _steps(self, group: Sequence[int]) -> int:
        settings = self.config.federate
        return sum(
            local_steps(len(self.clients[client]), settings.batch_size, settings.local_epochs) for client in group
        )

    def _train(
        self,
        number: int,
        cohort: list[int],
        groups: list[list[int]],
        own: list[int],
        weights: Tensor,
        total: RoundSum,
        report: _Record,
    ) -> None:
        """Train this rank's groups into the sum."""
        position = {client: index for index, client in enumerate(cohort)}
        plan = self.plan(number, groups[own[0]]) if own else None

        def fetch_next() -> None:
            self.data.prefetch(plan)
            if self.states and plan:
                self.states.prefetch(plan.clients)

        start = self.start(fetch_next)
        for turn, group in enumerate(own):
            began, present = time.perf_counter(), plan
            assert present is not None
            plan = self.plan(number, groups[own[turn + 1]]) if turn + 1 < len(own) else None
            for trained in self.backend.train(start, present):
                places = [position[client] for client in trained.plan.clients]
                finite = total.add(trained, start.vector, weights[places], 1 / len(cohort))
                report.losses[places] = torch.where(finite, trained.losses.cpu(), 0.0)
                report.status[places] = torch.where(finite, TRAINED, DIVERGED).to(torch.float64)
                if trained.kept is not None:
                    report.kept[places] = trained.kept.cpu()
                self._keep(trained, finite)
            report.seconds[group] = time.perf_counter() - began

    def start(self, begun: Callable[[], None] = lambda: None) -> RoundStart:
        """What the clients of the next round start from; every rank must ask for it."""
        vector, pool = self.server.vector, self.pool

        @cache
        def model() -> nn.Module:
            self.host.load(vector)
            return self.host.model

        return RoundStart(
            vector,
            self.server.broadcast(),
            self.states,
            self.interrupted,
            begun,
            self.server.shared,
            model,
            pool.images if pool else None,
            self.kept,
        )

    @torch.no_grad()
    def survey(self, when: str, number: int) -> None:
        """Ask all clients that have samples after round `number`, or before it its cohort, as the method wants."""
        if when not in self.method.survey_at:
            return
        cohort = self.cohort(number) if when == "round" else None
        sums = self._asked(cohort, number if cohort else 0)
        asked = len(cohort) if cohort else sum(1 for rows in self.clients if len(rows))
        self._work(self.method.surveyed, number, sums, asked, False)

    def _asked(self, cohort: Sequence[int] | None = None, number: int = 0) -> dict[str, Tensor]:
        """The sums of what all clients, or a cohort, tell a survey, float64; samples in the order of round `number`.

        Bit by bit the same for any number of ranks in exact mode.
        """
        held = by_steps(range(len(self.clients)), [len(rows) for rows in self.clients])
        groups = groups_of(cohort or [client for client in held if len(self.clients[client])], SURVEYED)
        vector, start = self.server.vector, self.start()
        like = vector[:1].double()
        sums = zeros(self.method.surveys, like)
        # In exact mode every group's part is kept apart, so that the order of adding up is the groups' own.
        parts = zeros(self.method.surveys, like, len(groups) if self.config.federate.aggregate.exact else 1)
        for turn in range(self.mesh.client_index, len(groups), self.mesh.clients):
            plan = self.plan(number, groups[turn])
            told = zeros(self.method.surveys, like, plan.lanes)
            staged, classes = self.data.stage(plan), self.method.problem.num_classes
            self.method.survey(Surveyed(plan, self.data, staged, start.model, classes, self.server.shared, told))
            for name, part in parts.items():
                part[turn if len(part) == len(groups) else 0] += told[name].sum(0)
        for name, part in parts.items():
            sums[name] = self.mesh.sum_over_clients(part).sum(0)
        return sums

    def _work(
        self,
        work: Callable[[ServerWork], None],
        number: int,
        reports: Mapping[str, Tensor],
        num_clients: int,
        refines: bool,
    ) -> None:
        """Let the server train on the main rank, and give all ranks what came of it."""
        server, mesh, layout = self.server, self.mesh, self.layout
        vectors = {name: layout.views(server.whole(name)) for name in self.method.inspects}
        if mesh.is_main:
            self.host.load(server.vector)
            seed, device = derive(self.config.seed, "server work", number), server.vector.device
            with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)  # what dropout draws from
                work(
                    ServerWork(
                        self.host.model,
                        server.shared,
                        reports,
                        vectors,
                        num_clients,
                        number,
                        seed,
                        self.pool.images if self.pool else None,
                        self.pool.labels if self.pool else None,
                        self.teacher,
                    )
                )
        for tensor in server.shared.values():
            tensor.copy_(mesh.broadcast_object(tensor.cpu()))
        if refines:
            server.vector = mesh.broadcast_object(self.host.read().cpu()).to(server.vector)

    @torch.no_grad()
    def judged(self) -> Tensor:
        """The whole vector of the global model as it is evaluated and handed on; every rank must ask for it."""
        whole = self.host.whole_of(self.server.vector).clone()
        state = self.host.whole_layout.views(whole)
        for name, tensor in self.method.judged(state, self.server.shared).items():
            if name not in state or state[name].shape != tensor.shape:
                expected = list(state[name].shape) if name in state else f"one of {', '.join(state)}"
                raise UserError(
                    f"federate.method={self.method.config.method}: `judged` gave {name} {list(tensor.shape)}, expected "
                    f"{expected}"
                )
            state[name].copy_(tensor)
        return whole

    def _explained(self, error: Exception) -> Exception:
        """What a client's training ran into, as a UserError where it is one, or as it is."""
        batch = self.config.federate.batch_size
        if "more than 1 value per channel" in str(error):
            return UserError(
                f"federate.batch_size={batch}: a client's last batch is one image, of which batch norm cannot take "
                "statistics; choose another batch size, or a model with group norm"
            )
        if is_out_of_memory(error):
            return UserError(
                f"federate.batch_size={batch}: out of memory with one client; choose smaller batches, a larger device, "
                "or federate.shard"
            )
        return error

    def _keep(self, trained: Trained, finite: Tensor) -> None:
        """Write what clients keep; a diverged one keeps what it had."""
        if not self.states:
            return
        row = self.server.vector.new_zeros(row_size(self.method, self.layout))
        for role in self.method.client_state:
            for lane, client in enumerate(trained.plan.clients):
                if finite[lane]:
                    self.states.write(client, role, trained.state.roles[role].lane(lane, row))

    def _finish(
        self,
        number: int,
        cohort: list[int],
        groups: list[list[int]],
        placed: list[list[int]],
        weights: Tensor,
        total: RoundSum,
        sections: list[Tensor],
        report: _Record,
        began: float,
    ) -> RoundResult:
        settings = self.config.federate
        counts = report.status == TRAINED
        if not counts.any():
            if self.states:
                self.states.discard()
            raise Diverged(f"federate: every client of round {number} diverged; lower federate.lr={settings.lr}")
        share, equal = float(weights[counts].sum()), float(counts.sum()) / len(cohort)
        counted = [client for client, kept in zip(cohort, counts.tolist(), strict=True) if kept]
        facts = {
            "participation": len(counted) / len(self.clients),
            "round": number,
            "sizes": [len(self.clients[client]) for client in counted],
            "steps": [self._steps([client]) for client in counted],
        }
        self.server.step(total, sections, share, equal, facts)
        if self.method.works:
            self._work(self.method.server_work, number, total.reports(equal), len(counted), self.method.refines)
        self.kept[counted] = report.kept[counts]
        if self.states:
            self.states.commit([e for written in self.mesh.gather_in_column(self.states.pending()) for e in written])
        steps = [self._steps(group) for group in groups]
        self.costs.observe(steps, report.seconds.tolist())
        busy = [sum(float(report.seconds[group]) for group in own) for own in placed]
        sizes = torch.tensor([float(len(self.clients[client])) for client in cohort], dtype=torch.float64)
        return RoundResult(
            loss=float((report.losses * sizes)[counts].sum() / sizes[counts].sum()),
            clients=len(cohort),
            diverged=[client for client, status in zip(cohort, report.status, strict=True) if status == DIVERGED],
            steps=sum(steps),
            seconds=time.perf_counter() - began,
            imbalance=max(busy) * len(busy) / max(sum(busy), 1e-9),
        )


class _Record:
    """Numbers that every rank fills in for its own clients and groups, as views of one float64 vector."""

    def __init__(self, cohort: int, groups: int, ranks: int, kept: int, numbers: Tensor | None = None) -> None:
        self._sizes = (cohort, groups, ranks, kept)
        self.size = (2 + kept) * cohort + groups + 2 * ranks
        self.numbers = torch.zeros(self.size, dtype=torch.float64) if numbers is None else numbers
        *parts, table = self.numbers.split([cohort, cohort, groups, ranks, ranks, kept * cohort])
        self.losses, self.status, self.seconds, self.used, self.interrupted = parts
        self.kept = table.view(cohort, kept)  # what each client keeps

    def of(self, numbers: Tensor) -> _Record:
        """The same views of another vector."""
        return _Record(*self._sizes, numbers)
