"""What a method adds to FedAvg's round: CPU-seconds of the clients' part, and seconds of the server's own training.

python bench/methods.py [METHOD...] [--width 64] [--repeats 7] [--json]

All methods train the same clients on the same images, ResNet-8 under the protocol's cohort (8 of 20 clients, batch 32,
one local epoch), one thread, one process. Rounds are interleaved, in another order each time; a ratio is the median of
the ratios to FedAvg's round of the same turn. Clients of `clip2fl` are held against FedAvg with the same 512-wide
layer; its teacher's logits are random numbers of the right shape, since they are looked up and not computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedscale.config import overlaid
from fedscale.config.schema import Config
from fedscale.distributed.mesh import Mesh
from fedscale.federated.data import RoundData
from fedscale.federated.engine import Engine
from fedscale.federated.methods import built_in
from fedscale.federated.pool import Pool
from fedscale.federated.setup import build_engine
from fedscale.models import build_model

CLIENTS, IMAGES, CLASSES, EMBEDDING = 20, 6200, 10, 512


class Timed:
    """A method's engine, and the seconds of its rounds: the clients' on the CPU, the server's own by the clock."""

    def __init__(self, name: str, method: str, width: int, projection: int, lanes: int, folder: Path) -> None:
        self.name, self.rounds, self.clients, self.server = name, 0, list[float](), list[float]()
        federate = {"method": method, "local_epochs": 1, "backend": "batched", "lanes": lanes, "augment": "crop_flip"}
        tree = {"federate": federate, "model": {"width": width} | ({"projection": projection} if projection else {})}
        config = overlaid(Config(), {**tree, "data": {"partition": {"clients": CLIENTS}}})
        draws = np.random.default_rng(0)
        images = draws.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        labels = draws.choice(CLASSES, IMAGES, p=(tail := 0.6 ** np.arange(CLASSES)) / tail.sum())
        data = RoundData(images, labels, torch.device("cpu"), (0.5,) * 3, (0.25,) * 3, "crop_flip")
        data.add_side("clip", torch.from_numpy(draws.normal(size=(IMAGES, CLASSES)).astype(np.float32)))
        torch.manual_seed(0)
        model = build_model(config.model, CLASSES)
        users = np.array_split(draws.permutation(IMAGES), CLIENTS)
        pool = Pool(torch.randn(500, 3, 32, 32), torch.arange(500) % CLASSES)
        teacher = {"clip": torch.nn.functional.normalize(torch.randn(CLASSES, EMBEDDING), dim=-1)}
        self.engine = build_engine(config, model, data, users, Mesh(), folder / name, pool=pool, teacher=teacher)
        self._watch(self.engine)
        self.engine.survey("start", 0)

    def _watch(self, engine: Engine) -> None:
        work, self._working = engine.central.work, 0.0

        def timed(*args: Any) -> None:
            wall, began = time.perf_counter(), time.process_time()
            work(*args)
            self._working, self._wall = time.process_time() - began, time.perf_counter() - wall

        engine.central.work = timed  # type: ignore[method-assign]

    def round(self) -> None:
        self.rounds += 1
        self._working = self._wall = 0.0
        began = time.process_time()
        self.engine.round(self.rounds)
        self.clients.append(time.process_time() - began - self._working)
        self.server.append(self._wall)


def measured(names: list[str], width: int, repeats: int, lanes: int) -> list[dict[str, Any]]:
    """A row a method: seconds a round, and the ratio to FedAvg's."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        timed = [Timed("fedavg", "fedavg", width, 0, lanes, Path(folder))]
        if "clip2fl" in names:
            timed.append(Timed("fedavg+512", "fedavg", width, EMBEDDING, lanes, Path(folder)))
        for name in names:
            timed.append(Timed(name, name, width, EMBEDDING if name == "clip2fl" else 0, lanes, Path(folder)))
        for turn in range(repeats + 1):  # the first warms up
            for number in np.random.default_rng(turn).permutation(len(timed)):
                timed[number].round()
    bases = {one.name: one for one in timed if one.name.startswith("fedavg")}
    rows = []
    for one in timed:
        base = bases["fedavg+512" if one.name == "clip2fl" else "fedavg"]
        ratios = [a / b for a, b in zip(one.clients[1:], base.clients[1:], strict=True)]
        rows.append(
            {
                "method": one.name,
                "clients_cpu_seconds": round(statistics.median(one.clients[1:]), 4),
                "ratio": round(statistics.median(ratios), 3),
                "server_seconds": round(statistics.median(one.server[1:]), 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="built-in methods; all but fedavg by default")
    parser.add_argument("--width", type=int, default=16, help="channels of ResNet-8's stem (the paper's: 64)")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = args.methods or [name for name in built_in() if name != "fedavg"]
    rows = measured(names, args.width, args.repeats, args.lanes)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'method':18} {'clients s':>10} {'× FedAvg':>9} {'server s':>9}")
    for row in rows:
        print(f"{row['method']:18} {row['clients_cpu_seconds']:10.3f} {row['ratio']:9.2f} {row['server_seconds']:9.3f}")


if __name__ == "__main__":
    main()
