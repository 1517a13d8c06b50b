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
from fedscale.federated.schedule import Schedule
from fedscale.federated.server import RoundSum, ServerState
from fedscale.federated.survey import survey_sums
from fedscale.rng import derive


@dataclass(frozen=True)
class RoundResult:
    """What a round did, the same on every rank."""

    loss: float | None  # of the clients that count, weighted by samples; None where none had any
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

    def schedule(self, number: int) -> Schedule:
        """Round `number`'s work. Only `placed` depends on how many ranks there are, and on how fast they were."""
        settings, lanes = self.config.federate, self.backend.lanes
        cohort = self.cohort(number)
        sizes = [len(self.clients[client]) for client in cohort]
        steps = [local_steps(size, settings.batch_size, settings.local_epochs) for size in sizes]
        groups = even_groups_of(cohort, steps, lanes) if settings.even_groups else groups_of(cohort, lanes)
        of = dict(zip(cohort, steps, strict=True))
        group_steps = [sum(of[client] for client in group) for group in groups]
        placed = placement([self.costs.cost(steps) for steps in group_steps], self.mesh.clients)
        weights = torch.tensor([self.method.weight(size) for size in sizes], dtype=torch.float64)
        return Schedule(number, cohort, sizes, steps, weights / weights.sum(), groups, group_steps, placed)

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
        schedule = self.schedule(number)
        if not schedule.cohort:
            return RoundResult(None, 0, [], 0, time.perf_counter() - began, 1.0)
        asks = "round" in self.method.survey_at
        before = {name: tensor.clone() for name, tensor in self.server.shared.items() if asks}
        self.survey("round", number)
        report = RoundRecord(len(schedule.cohort), len(schedule.groups), self.mesh.clients, self.kept.shape[1])
        total = self.fresh_sum(report.size)
        try:
            self._train(schedule, total, report)
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
            self._undo(before)
            if (report.ended == OUT_OF_MEMORY).any():
                lanes = self.backend.lanes
                raise OutOfMemory(f"federate.lanes={lanes}: out of memory; choose fewer lanes under another name=")
            return None
        check_used(float(report.used.sum()), self.config.federate.aggregate.fraction_bits)
        self._update(schedule, total, sections, report)
        return self._result(schedule, report, began)

    def fresh_sum(self, record: int) -> RoundSum:
        """The sum of a round, at zero, with room for a record of so many numbers."""
        size = self._sum.means + record if self._sum else -1
        if self._sum is None or len(self._sum.accumulator.vector) != size:
            settings = self.config.federate.aggregate
            self._sum = RoundSum(self.layout, self.mesh, self.method, record, settings, self.server.vector)
        self._sum.reset()
        return self._sum

    def _train(self, schedule: Schedule, total: RoundSum, report: RoundRecord) -> None:
        """Train this rank's groups into the sum."""
        groups, own = schedule.groups, schedule.placed[self.mesh.client_index]
        position = {client: index for index, client in enumerate(schedule.cohort)}
        plan = self.plan(schedule.number, groups[own[0]]) if own else None

        def fetch_next() -> None:
            self.data.prefetch(plan)
            if self.states and plan:
                self.states.prefetch(plan.clients)

        start = self.start(fetch_next)
        for turn, group in enumerate(own):
            began, present = time.perf_counter(), plan
            assert present is not None
            plan = self.plan(schedule.number, groups[own[turn + 1]]) if turn + 1 < len(own) else None
            for trained in self.backend.train(start, present):
                places = [position[client] for client in trained.plan.clients]
                finite = total.add(trained, start.vector, schedule.weights[places], schedule.equal)
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

    def _undo(self, shared: dict[str, Tensor]) -> None:
        """Leave all as the round found it; `shared` is what the method's own tensors were."""
        if self.states:
            self.states.discard()
        for name, tensor in shared.items():
            self.server.shared[name].copy_(tensor)

    def _update(self, schedule: Schedule, total: RoundSum, sections: list[Tensor], report: RoundRecord) -> None:
        """The server's part, with the means of the clients that did not diverge."""
        number, cohort, counts = schedule.number, schedule.cohort, report.status == TRAINED
        if not counts.any():
            if self.states:
                self.states.discard()
            lr = self.config.federate.lr
            raise Diverged(f"federate: every client of round {number} diverged; lower federate.lr={lr}")
        places = counts.nonzero()[:, 0].tolist()
        counted, equal = [cohort[place] for place in places], len(places) / len(cohort)
        facts = {
            "participation": len(counted) / len(self.clients),
            "round": number,
            "sizes": [schedule.sizes[place] for place in places],
            "steps": [schedule.steps[place] for place in places],
        }
        self.server.step(total, sections, float(schedule.weights[counts].sum()), equal, facts)
        if self.method.works:
            told = total.reports(equal)
            self.central.work(self.method.server_work, number, told, len(counted), self.method.refines)
        self.kept[counted] = report.kept[counts]
        if self.states:
            self.states.commit([e for written in self.mesh.gather_in_column(self.states.pending()) for e in written])
        self.costs.observe(schedule.group_steps, report.seconds.tolist())

    def _result(self, schedule: Schedule, report: RoundRecord, began: float) -> RoundResult:
        counts, busy = report.status == TRAINED, schedule.busy(report.seconds)
        sizes = torch.tensor(schedule.sizes, dtype=torch.float64)
        diverged = (report.status == DIVERGED).nonzero()[:, 0].tolist()
        return RoundResult(
            loss=float((report.losses * sizes)[counts].sum() / sizes[counts].sum()),
            clients=len(schedule.cohort),
            diverged=[schedule.cohort[place] for place in diverged],
            steps=sum(schedule.steps),
            seconds=time.perf_counter() - began,
            imbalance=max(busy) * len(busy) / max(sum(busy), 1e-9),
        )
