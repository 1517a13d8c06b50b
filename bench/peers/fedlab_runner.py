"""FedAvg in FedLab: StandalonePipeline with FedAvgSerialClientTrainer, one process.

A user is a BaseDataset of float tensors, normalised once, and a DataLoader of its own each round, as FedLab's data sets
are; without shuffling, as its PathologicalMNIST, so that batches are the same as the other peers'. FedLab averages by
default without weights; where users differ in size the handler weights by number of images with FedLab's aggregator.
It neither sends nor averages BatchNorm's running statistics.
"""

from __future__ import annotations

import torch
from common import Clock, Job, report, start
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.contrib.dataset.basic_dataset import BaseDataset, FedDataset
from fedlab.core.standalone import StandalonePipeline
from fedlab.utils import Aggregators, SerializationTool
from models import mean_loss
from torch import Tensor
from torch.utils.data import DataLoader
from torch_common import initial_model, tensors, users


class Users(FedDataset):
    def __init__(self, inputs: Tensor, labels: Tensor, indices: list[Tensor]) -> None:
        super().__init__()
        self.num = len(indices)
        self.inputs, self.labels, self.indices = inputs, labels, indices

    def get_dataset(self, id: int, type: str = "train") -> BaseDataset:
        return BaseDataset(self.inputs[self.indices[id]], self.labels[self.indices[id]])

    def get_dataloader(self, id: int, batch_size: int, type: str = "train") -> DataLoader:
        return DataLoader(self.get_dataset(id), batch_size=batch_size)


class GivenCohorts(FedAvgServerHandler):
    """Clients of the given cohorts, in their order, weighted by number of images."""

    job: Job

    def sample_clients(self) -> list[int]:
        return self.job.cohorts[self.round].tolist()

    def global_update(self, buffer: list[list[Tensor]]) -> None:
        weights = torch.from_numpy(self.job.data.sizes[self.job.cohorts[self.round]]).float()
        averaged = Aggregators.fedavg_aggregate([package[0] for package in buffer], weights)
        SerializationTool.deserialize_model(self._model, averaged)


class Pipeline(StandalonePipeline):
    clock: Clock

    def evaluate(self) -> None:
        """Called after each round; nothing is evaluated."""
        self.clock.lap()


def train(job: Job, clock: Clock) -> float:
    """Runs the rounds; returns the final loss."""
    workload = job.workload
    assert workload.server_learning_rate == 1.0, "FedLab's server takes the average itself"
    inputs, labels = tensors(job)
    model = initial_model(job)
    trainer = FedAvgSerialClientTrainer(model, workload.users)
    trainer.setup_dataset(Users(inputs, labels, users(job)))
    trainer.setup_optim(workload.epochs, workload.batch, workload.learning_rate)
    ratio = (workload.cohort + 0.5) / workload.users  # FedLab rounds ratio × users down
    handler = GivenCohorts(model, global_round=job.rounds, sample_ratio=ratio)
    handler.job = job
    pipeline = Pipeline(handler, trainer)
    pipeline.clock = clock
    clock.begin()
    pipeline.main()
    return mean_loss(handler.model, inputs, labels)


def main() -> None:
    job, clock = start(__doc__.splitlines()[0]), Clock()
    report(job, "fedlab", "fedlab", clock, train(job, clock), "torch")


if __name__ == "__main__":
    main()
