"""FedAvg in FedJAX: its federated_averaging over for_each_client's jit backend, one process.

Images are normalised floats, and a user's are gathered by index when it is in the cohort. Batches are in order. Where
users' sizes are no multiples of the batch, the last one is padded and masked, as FedJAX recommends; it would otherwise
compile a step for every size. FedJAX's algorithm has no place for BatchNorm's running statistics, so that ResNet-8 has
client functions of its own on for_each_client, where the statistics are averaged with the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import fedjax
import fedjax_models
import jax
import jax.numpy as jnp
import numpy as np
from common import Clock, Job, report, start
from fedjax.algorithms import fed_avg
from fedjax_models import Params
from numpy.typing import NDArray
from workloads import normalised

EVALUATED = 500  # images in a batch of the final loss, as models.mean_loss


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of each image."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


class Ordered(fedjax.ClientDataset):
    """A user whose training batches are in order: the algorithm asks for shuffled ones, with a filled-up last."""

    def shuffle_repeat_batch(self, hparams: Any = None, **named: Any) -> Iterable[dict[str, NDArray]]:
        if len(self) % hparams.batch_size:
            return self.padded_batch(batch_size=hparams.batch_size)
        return self.batch(batch_size=hparams.batch_size)


Clients = list[tuple[int, fedjax.ClientDataset, jax.Array]]
Round = Callable[[Params, Clients], Params]


def averaging(job: Job) -> Round:
    """One round of FedJAX's own federated averaging."""
    workload = job.workload
    assert workload.epochs == 1, "Ordered gives one epoch"
    apply, _ = fedjax_models.MODELS[workload.model]
    model = fedjax.Model(
        init=lambda key: None,
        apply_for_train=lambda params, batch, key: apply(params, batch["x"], key),
        apply_for_eval=lambda params, batch: apply(params, batch["x"]),
        train_loss=lambda batch, logits: cross_entropy(logits, batch["y"]),
        eval_metrics={},
    )
    algorithm = fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(workload.learning_rate),
        fedjax.optimizers.sgd(workload.server_learning_rate),
        fedjax.ShuffleRepeatBatchHParams(batch_size=workload.batch),
    )

    def one_round(params: Params, clients: Clients) -> Params:
        return algorithm.apply(algorithm.init(params), clients)[0].params  # plain SGD keeps no state

    return one_round


def averaging_with_statistics(job: Job) -> Round:
    """One round of FedAvg on for_each_client; clients carry and return running statistics beside the parameters."""
    workload = job.workload

    def loss(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, Params]:
        logits, running = fedjax_models.resnet8(params, batch["x"])
        return cross_entropy(logits, batch["y"]).mean(), running

    def step(params: Params, batch: dict[str, jax.Array]) -> Params:
        gradients, running = jax.grad(loss, has_aux=True)(params, batch)
        trained = {name: value - workload.learning_rate * gradients[name] for name, value in params.items()}
        return trained | running

    for_each_client = fedjax.for_each_client(lambda params, _: params, step, lambda start, end: end)

    def one_round(params: Params, clients: Clients) -> Params:
        batches = [(user, data.batch(batch_size=workload.batch), key) for user, data, key in clients]
        sizes = {user: len(data) for user, data, _ in clients}
        return fedjax.tree_util.tree_mean((out, sizes[user]) for user, out in for_each_client(params, batches))

    return one_round


def mean_loss(job: Job, params: Params, inputs: NDArray, labels: NDArray) -> float:
    """As models.mean_loss: without dropout, BatchNorm by each batch's own statistics."""

    @jax.jit
    def total(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        if job.workload.model == "resnet8":
            logits, _ = fedjax_models.resnet8(params, x)
        else:
            logits = fedjax_models.MODELS[job.workload.model][0](params, x)
        return cross_entropy(logits, y).sum()

    parts = [slice(start, start + EVALUATED) for start in range(0, len(labels), EVALUATED)]
    return sum(float(total(params, inputs[part], labels[part])) for part in parts) / len(labels)


def train(job: Job, clock: Clock) -> float:
    """Runs the rounds; returns the final loss."""
    inputs, labels = normalised(job.data.images), job.data.labels.astype(np.int32)
    if job.workload.model == "resnet8":
        weights = {name: value for name, value in job.weights.items() if "num_batches" not in name}
        params, one_round = fedjax_models.converted(weights, None), averaging_with_statistics(job)
    else:
        params = fedjax_models.converted(job.weights, fedjax_models.MODELS[job.workload.model][1])
        one_round = averaging(job)
    key = jax.random.PRNGKey(job.workload.seed)
    fedjax.set_for_each_client_backend("jit")
    clock.begin()
    for cohort in job.cohorts.tolist():
        key, used = jax.random.split(key)
        clients = []
        for user, client_key in zip(cohort, jax.random.split(used, len(cohort)), strict=True):
            chosen = job.data.user(user)
            clients.append((user, Ordered({"x": inputs[chosen], "y": labels[chosen]}), client_key))
        params = jax.block_until_ready(one_round(params, clients))
        clock.lap()
    return mean_loss(job, params, inputs, labels)


def main() -> None:
    jax.tree_map = jax.tree.map  # FedJAX 0.0.17 (2023) weights updates by this old name, which JAX has since removed
    job, clock = start(__doc__.splitlines()[0]), Clock()
    report(job, "fedjax", "fedjax", clock, train(job, clock), "jax")


if __name__ == "__main__":
    main()
