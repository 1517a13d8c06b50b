"""B5 of the engine benchmark: two ranks against one, memory against the number of clients, the command's start.

python bench/engine_scale.py ranks     # B4-CPU (ResNet-8, 8 of 20 clients, K stated): seconds, max parameter difference
python bench/engine_scale.py memory    # peak memory with 100 to 100,000 clients, and what K and the model add
python bench/engine_scale.py start     # start of `fedscale federate` to the end of round 1, logistic regression
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).absolute()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def launched(command: list[str]) -> list[str]:
    """What a command prints, a line a list entry; its failure ends the benchmark."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return done.stdout.splitlines()


def worker(words: list[str]) -> None:
    """`worker DATA K ROUNDS OUT`: federate B4-CPU as one of the launched ranks, exact; rank 0 prints and saves."""
    import numpy as np
    import torch

    sys.path.insert(0, str(HERE.parent / "peers"))
    from models import build, load_weights
    from workloads import CENTRE, SCALE, WORKLOADS, load_npz

    from fedscale.config import overlaid
    from fedscale.config.schema import Config
    from fedscale.distributed.mesh import open_mesh
    from fedscale.federated.data import RoundData
    from fedscale.federated.setup import build_engine

    file, lanes, rounds, out = words
    torch.set_num_threads(1)
    workload, (data, weights) = WORKLOADS["resnet8"], load_npz(Path(file))
    federate = {
        "rounds": int(rounds), "clients_per_round": workload.cohort, "local_epochs": 1, "batch_size": workload.batch,
        "lr": workload.learning_rate, "augment": "crop_flip", "backend": "batched", "lanes": int(lanes),
        "aggregate": {"exact": True},
    }  # fmt: skip
    config = overlaid(Config(), {"data": {"partition": {"clients": workload.users}}, "federate": federate})
    with open_mesh(torch.device("cpu"), 1, 120, print) as mesh:
        store = RoundData(data.images, data.labels, mesh.device, (CENTRE / 255,) * 3, (SCALE / 255,) * 3, "crop_flip")
        users = [data.user(number) for number in range(workload.users)]
        engine = build_engine(config, load_weights(build(workload), weights), store, users, mesh)
        seconds = []
        for number in range(1, int(rounds) + 1):
            mesh.barrier("a round's start")
            began = time.perf_counter()
            engine.round(number)
            seconds.append(time.perf_counter() - began)
        if mesh.is_main:
            np.save(out, engine.server.vector.numpy())
            print(json.dumps(seconds))


def ranks(repeats: int, lanes: int, rounds: int) -> None:
    """Seconds a round of two ranks against one, interleaved; and of two runs of one rank at once, which share nothing.

    Those say what the machine has for two processes: below twice one's speed, its cores share caches or memory.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        launched([sys.executable, str(HERE.parent / "peers" / "models.py"), "--workload", "resnet8", str(data)])

        def seconds(world: int, name: str) -> float:
            words = ["worker", str(data), str(lanes), str(rounds), f"{folder}/{name}.npy"]
            printed = launched([*TORCHRUN, str(world), str(HERE), *words])
            return statistics.median(json.loads(next(line for line in printed if line.startswith("[")))[1:])

        one, two, apart = [], [], []
        for _ in range(repeats):
            one.append(seconds(1, "one"))
            two.append(seconds(2, "two"))
            with ThreadPoolExecutor(2) as pool:
                apart.append(statistics.mean(pool.map(seconds, (1, 1), ("left", "right"))))
        difference = np.abs(np.load(f"{folder}/one.npy") - np.load(f"{folder}/two.npy")).max()
    ratios = [alone / both for alone, both in zip(one, two, strict=True)]
    limits = [2 * alone / beside for alone, beside in zip(one, apart, strict=True)]
    print(f"B4-CPU, exact, K = {lanes}, one thread a rank, {rounds} rounds, {repeats} times in turn")
    print(f"one rank {statistics.median(one):.3f} s a round, two ranks {statistics.median(two):.3f} s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"of two runs of one rank at once: {statistics.median(limits):.2f} ({min(limits):.2f} to {max(limits):.2f})")
    print(f"largest difference of a parameter: {difference}")


def population(words: list[str]) -> None:
    """`population CLIENTS COHORT K MODEL`: three rounds over so many clients; prints memory in MiB."""
    import resource

    import numpy as np
    import torch

    from fedscale.config import overlaid
    from fedscale.config.schema import Config, ModelConfig
    from fedscale.distributed.mesh import Mesh
    from fedscale.federated.data import RoundData
    from fedscale.federated.setup import build_engine
    from fedscale.models import build_model

    clients, cohort, lanes, name = int(words[0]), int(words[1]), int(words[2]), words[3]
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    # Clients share one pool of images, so that what grows with them is the engine's own memory and not the data's.
    images = generator.integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, 5000)
    held = [np.arange(start, start + 20) % 5000 for start in range(clients)]
    federate = {
        "rounds": 3, "clients_per_round": cohort, "local_epochs": 1, "batch_size": 10, "augment": "flip",
        "backend": "batched", "lanes": lanes, "lr": 0.01,
    }  # fmt: skip
    config = overlaid(Config(), {"data": {"partition": {"clients": clients}}, "federate": federate})
    torch.manual_seed(0)
    model = build_model(ModelConfig(name, 16), 10)
    data = RoundData(images, labels, torch.device("cpu"), (0.5,) * 3, (0.25,) * 3, "flip")
    engine = build_engine(config, model, data, held, Mesh())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for number in (1, 2, 3):
        engine.round(number)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    index = sum(rows.nbytes + 112 for rows in held) / 2**20
    print(json.dumps([before, after, index, engine.layout.size]))


def memory() -> None:
    """The curve over clients, and what lanes and parameters add."""
    print(f"{'model':<12}{'clients':>9}{'cohort':>8}{'K':>5}{'peak MiB':>10}{'rounds add':>12}{'their index':>13}")
    cases = [("resnet8", n, min(n, 100), 8) for n in (100, 1_000, 10_000, 100_000)]
    cases += [("resnet8", 10_000, 1_000, 8), ("resnet8", 10_000, 100, 32), ("simple_cnn", 10_000, 100, 8)]
    for name, clients, cohort, lanes in cases:
        words = ["population", str(clients), str(cohort), str(lanes), name]
        before, after, index, _ = json.loads(launched([sys.executable, str(HERE), *words])[-1])
        print(f"{name:<12}{clients:>9,}{cohort:>8,}{lanes:>5}{after:>10.0f}{after - before:>12.0f}{index:>13.1f}")


def start(repeats: int) -> None:
    """Start of the command to the end of round 1: logistic regression, 50 of 1,000 clients, data built before."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "configs/demo.yaml", "variant=fedavg", "seeds=[1]", "model.name=linear", "jobs=1", "threads=1",
            "data.imbalance_factor=1", "data.open_pool.enabled=false", "data.partition.kind=iid",
            "data.partition.clients=1000", "federate.clients_per_round=50", "federate.local_epochs=1",
            "federate.batch_size=10", "federate.momentum=0", "federate.backend=auto", "federate.rounds=2",
            "eval.every=2", "data.shapes.train_per_class=1000", f"data.dir={folder}/shards",
        ]  # fmt: skip
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        launched([sys.executable, "-m", "fedscale", "federate", *words, f"out={folder}/first"])  # builds the data
        seconds = []
        for repeat in range(repeats):
            metrics = Path(folder) / str(repeat) / "demo" / "fedavg-s1" / "federate" / "metrics.jsonl"
            began = time.perf_counter()
            command = [sys.executable, "-m", "fedscale", "federate", *words, f"out={folder}/{repeat}"]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    sys.exit("fedscale federate ended before round 1")
                time.sleep(0.005)
            seconds.append(time.perf_counter() - began)
            process.wait()
    listed = ", ".join(f"{s:.2f}" for s in seconds)
    print(f"start of the command to the end of round 1: {statistics.median(seconds):.2f} s ({listed})")


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in ("worker", "population"):
        {"worker": worker, "population": population}[sys.argv[1]](sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["ranks", "memory", "start", "all"], default="all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2, help="K of `ranks`")
    parser.add_argument("--rounds", type=int, default=4, help="of `ranks`")
    options = parser.parse_args()
    if options.what in ("ranks", "all"):
        ranks(options.repeats, options.lanes, options.rounds)
    if options.what in ("memory", "all"):
        memory()
    if options.what in ("start", "all"):
        start(options.repeats)


if __name__ == "__main__":
    main()
