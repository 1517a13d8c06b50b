"""One round, start to end: cohort → groups → placement → local training → one sum → the server's update.

Every rank runs the same lines and holds the same plan; which rank trains which group is the only thing that depends
on how many there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from fedscale.config.schema import Config
from fedscale.distributed.mesh import Mesh
from fedscale.errors import Diverged, UserError
from fedscale.federated.aggregation import check_used
from fedscale.federated.backends import Backend, Interrupted, OutOfMemory, RoundStart, Trained
from fedscale.federated.backends.memory import is_out_of_memory
from fedscale.federated.backends.trainer import row_size
from fedscale.federated.central import Central
from fedscale.federated.client_state import ClientStates
from fedscale.federated.cohort import CostModel, by_steps, even_groups_of, groups_of, placement, sample_cohort
from fedscale.federated.data import RoundData
from fedscale.federated.flat import ModelHost
from fedscale.federated.kept import kept_size
from fedscale.federated.methods import Method
from fedscale.federated.plan import GroupPlan, local_steps, plan_group
from fedscale.federated.record import DIVERGED, INTERRUPTED, OUT_OF_MEMORY, TRAINED, RoundRecord
from fedscale.federated.server import RoundSum, ServerState
from fedscale.federated.survey import survey_sums
from fedscale.rng import derive


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
    central: Central
    states: ClientStates | None = None
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

    def groups(self, cohort: Sequence[int]) -> list[list[int]]:
        """The cohort, the largest first, cut into groups that train side by side."""
        if not self.config.federate.even_groups:
            return groups_of(cohort, self.backend.lanes)
        return even_groups_of(cohort, [self._steps([client]) for client in cohort], self.backend.lanes)

    def plan(self, number: int, clients: Sequence[int]) -> GroupPlan:
        """The plan of a group of clients in a round."""
        settings = self.config.federate
        samples = [self.clients[client] for client in clients]
        return plan_group(self.config.seed, number, clients, samples, settings.batch_size, settings.local_epochs)

    @torch.no_grad()
    def round(self, number: int) -> RoundResult | None:
        """Carry out round `number`; None when it was interrupted on any rank, and nothing has changed.

        Raises UserError when every client diverged; OutOfMemory, on every rank and with nothing changed, where that
        ends the run; RankLost when a rank is gone.
        """
        began = time.perf_counter()
        cohort = self.cohort(number)
        if not cohort:
            return RoundResult(0.0, 0, [], 0, time.perf_counter() - began, 1.0)
        asks = "round" in self.method.survey_at
        before = {name: tensor.clone() for name, tensor in self.server.shared.items() if asks}
        self.survey("round", number)
        groups = self.groups(cohort)
        report = RoundRecord(len(cohort), len(groups), self.mesh.clients, self.kept.shape[1])
        total = self.fresh_sum(report.size)
        weights = torch.tensor([self.method.weight(len(self.clients[c])) for c in cohort], dtype=torch.float64)
        weights /= weights.sum()
        placed = placement([self.costs.cost(self._steps(group)) for group in groups], self.mesh.clients)
        try:
            self._train(number, cohort, groups, placed[self.mesh.client_index], weights, total, report)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise self._explained(error) from error
        except Interrupted:
            report.ended[self.mesh.client_index] = INTERRUPTED
        except OutOfMemory:
            report.ended[self.mesh.client_index] = OUT_OF_MEMORY
        report.used[self.mesh.client_index] = getattr(total.accumulator, "used", 0.0)
        total.fill_record(report.numbers)

        self.mesh.barrier(f"round {number}")
        sections = self.server.collect(total)
        report = report.of(total.record())
        if report.ended.any():
            if self.states:
                self.states.discard()
            for name, tensor in before.items():
                self.server.shared[name].copy_(tensor)
            if (report.ended == OUT_OF_MEMORY).any():
                lanes = self.backend.lanes
                raise OutOfMemory(f"federate.lanes={lanes}: out of memory; choose fewer lanes under another name=")
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
        report: RoundRecord,
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
        vector, pool = self.server.vector, self.central.pool

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
        held = [client for client in range(len(self.clients)) if len(self.clients[client])]
        asked = self.cohort(number) if when == "round" else held
        sums = survey_sums(self, asked, number if when == "round" else 0)
        self.central.work(self.method.surveyed, number, sums, len(asked), False)

    def judged(self) -> Tensor:
        """The whole vector of the global model as it is evaluated and handed on; every rank must ask for it."""
        return self.central.judged()

    def _explained(self, error: Exception) -> Exception:
        """What a client's training ran into, as a UserError where it is one, or as it is."""
        batch = self.config.federate.batch_size
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
        report: RoundRecord,
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
            told = total.reports(equal)
            self.central.work(self.method.server_work, number, told, len(counted), self.method.refines)
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
