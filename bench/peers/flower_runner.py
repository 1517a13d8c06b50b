"""FedAvg in Flower: its simulation engine on Ray with two client actors of one CPU each, a SuperNode for every user.

Uses the Message API and the FedAvg strategy; the strategy sends user u's message to the u-th node of the given cohorts.
Each actor holds all images as normalised floats. Work is spread over processes, so CPU seconds and memory are sums over
this process and all that Ray started, memory of shared pages counted in each. CPU seconds include Flower's polling. The
first round includes Ray's start. BatchNorm's running statistics travel and are averaged with the other arrays.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from typing import Any

# Both are read at import, and would have the machine call home.
os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")

import flower_client
import psutil
from common import Clock, Job, report, start
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from models import mean_loss
from torch_common import initial_model, tensors

ACTORS = 2


def processes() -> Iterable[psutil.Process]:
    """This process and its descendants."""
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def tree_cpu() -> float:
    """CPU seconds of all processes, with those of ended children that were waited for."""
    total = 0.0
    for process in processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def tree_memory() -> int:
    total = 0
    for process in processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


class GivenCohorts(FedAvg):
    """FedAvg over the given cohorts, without evaluation."""

    def __init__(self, job: Job) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.job = job

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        nodes = sorted(grid.get_node_ids())
        while len(nodes) < self.job.workload.users:  # the engine registers them while the server starts
            time.sleep(0.1)
            nodes = sorted(grid.get_node_ids())
        shared = {"workload": self.job.workload.name, "file": str(self.job.file), "threads": self.job.threads}
        for user in self.job.cohorts[server_round - 1].tolist():
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({**shared, "user": user})})
            yield Message(content, message_type=MessageType.TRAIN, dst_node_id=nodes[user])


def train(job: Job, clock: Clock) -> float:
    """Runs the rounds; returns the final loss."""
    model = initial_model(job)
    server = ServerApp()
    final: dict[str, ArrayRecord] = {}

    def after_round(server_round: int, arrays: ArrayRecord) -> None:
        """Flower's hook for evaluating the global model, before the first round and after each."""
        if server_round:
            clock.lap()
        else:
            clock.begin()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        strategy, arrays = GivenCohorts(job), ArrayRecord(model.state_dict())
        final["arrays"] = strategy.start(grid, arrays, num_rounds=job.rounds, evaluate_fn=after_round).arrays

    config: dict[str, Any] = {
        "init_args": {"num_cpus": ACTORS, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server, flower_client.app, num_supernodes=job.workload.users, backend_config=config)
    model.load_state_dict(final["arrays"].to_torch_state_dict())
    return mean_loss(model, *tensors(job))


def main() -> None:
    job, clock = start(__doc__.splitlines()[0]), Clock(tree_cpu, tree_memory)
    report(job, "flower", "flwr", clock, train(job, clock), "torch")


if __name__ == "__main__":
    main()
