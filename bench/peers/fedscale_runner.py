"""fedscale's own runner of the engine benchmark: the engine as `fedscale federate` builds it, on the workload's file.

    .venv/bin/python bench/peers/fedscale_runner.py --workload lr --data FILE.npz --rounds 5 --threads 1 [key=value...]

`key=value` words are settings of `federate`, e.g. backend=batched lanes=10. Unlike the peers, a client shuffles its
images in every epoch; with --given-order it takes them as they are, so that final losses can be compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import Clock, job_of, limit_threads, report
from workloads import CENTRE, SCALE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--given-order", action="store_true")
    parser.add_argument("settings", nargs="*", help="key=value of federate")
    options = parser.parse_args()
    limit_threads(options.threads)
    job, clock = job_of(options.workload, options.data, options.rounds, options.threads), Clock()

    import torch
    from models import build, load_weights, mean_loss
    from torch_common import tensors

    from fedscale.config import overlaid
    from fedscale.config.schema import Config
    from fedscale.distributed.mesh import Mesh
    from fedscale.federated import plan
    from fedscale.federated.data import RoundData
    from fedscale.federated.setup import build_engine

    torch.set_num_threads(job.threads)
    if options.given_order:
        plan._orders = lambda keys, sizes, epochs, most: np.broadcast_to(np.arange(most), (len(keys), epochs, most))
    workload, data = job.workload, job.data
    federate: dict[str, Any] = {
        "rounds": job.rounds, "clients_per_round": workload.cohort, "local_epochs": workload.epochs,
        "batch_size": workload.batch, "lr": workload.learning_rate, "augment": "none",
    }  # fmt: skip
    base = overlaid(Config(), {"data": {"partition": {"clients": workload.users}}, "federate": federate})
    words = {word.partition("=")[0]: _value(word.partition("=")[2]) for word in options.settings}
    config = overlaid(base, {"federate": words})
    centre, scale = (CENTRE / 255,) * workload.image[2], (SCALE / 255,) * workload.image[2]
    store = RoundData(data.images, data.labels, torch.device("cpu"), centre, scale, "none")
    model = load_weights(build(workload), job.weights)
    users = [data.user(number) for number in range(workload.users)]
    engine = build_engine(config, model, store, users, Mesh(), say=lambda line: print(line, file=sys.stderr))
    engine.cohort = lambda number: _by_size(job.cohorts[number - 1], users)  # type: ignore[method-assign]
    clock.begin()
    for number in range(1, job.rounds + 1):
        engine.round(number)
        clock.lap()
    engine.host.load(engine.server.vector)
    inputs, labels = tensors(job)
    report(job, "fedscale", "mllm-fedscale", clock, mean_loss(engine.host.model, inputs, labels), "torch")


def _value(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _by_size(cohort: np.ndarray, users: list[np.ndarray]) -> list[int]:
    return sorted(cohort.tolist(), key=lambda user: (-len(users[user]), user))


if __name__ == "__main__":
    main()
