"""FedAvg in pfl (apple/pfl-research): SimulatedBackend in one process, users' data as tensors in memory.

As in pfl's CIFAR-10 benchmark, all images are float tensors, normalised once, and a user's are gathered by index when
it is sampled. pfl takes batches in order, with a smaller last one. It draws users by a function, here the given
cohorts. It neither sends nor averages BatchNorm's running statistics: the one model in the process keeps updating them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from common import Clock, Job, report, start
from models import mean_loss
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch_common import initial_model, tensors, users


class Trained(nn.Module):
    """The model with the two methods that pfl asks of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.train()
        return nn.functional.cross_entropy(self.model(inputs), labels)

    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
        raise AssertionError("evaluation is no part of the benchmark")


class WithoutEvaluation(FederatedAveraging):
    """pfl evaluates the cohort in iteration 0 whatever the frequency; here no iteration does."""

    def get_next_central_contexts(self, *arguments: Any, **named: Any) -> Any:
        contexts, model, metrics = super().get_next_central_contexts(*arguments, **named)
        if contexts is not None:
            contexts = tuple(dataclasses.replace(context, do_evaluation=False) for context in contexts)
        return contexts, model, metrics


class Laps(TrainingProcessCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.clock.begin()
        return Metrics()

    def after_central_iteration(self, *arguments: Any, **named: Any) -> tuple[bool, Metrics]:
        self.clock.lap()
        return False, Metrics()


def train(job: Job, clock: Clock) -> float:
    """Runs the rounds; returns the final loss."""
    workload = job.workload
    inputs, labels = tensors(job)
    indices = users(job)
    sampled = iter(job.cohorts.ravel().tolist())

    def dataset(user: int) -> PyTorchTensorDataset:
        return PyTorchTensorDataset((inputs[indices[user]], labels[indices[user]]), user_id=str(user))

    trained = Trained(initial_model(job))
    central = torch.optim.SGD(trained.parameters(), lr=workload.server_learning_rate)
    model = PyTorchModel(trained, local_optimizer_create=torch.optim.SGD, central_optimizer=central)
    data = FederatedDataset(dataset, lambda: next(sampled))
    WithoutEvaluation().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds + 1,
            train_cohort_size=workload.cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=workload.epochs,
            local_learning_rate=workload.learning_rate,
            local_batch_size=workload.batch,
        ),
        callbacks=[Laps(clock)],
        send_metrics_to_platform=False,  # it would print them
    )
    return mean_loss(trained.model, inputs, labels)


def main() -> None:
    job, clock = start(__doc__.splitlines()[0]), Clock()
    report(job, "pfl", "pfl", clock, train(job, clock), "torch")


if __name__ == "__main__":
    main()
