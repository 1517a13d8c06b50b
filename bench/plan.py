"""Whether `fedscale plan` predicts: rates fitted on some runs, judged on others that they never saw; and who waits.

    python bench/plan.py            # all: the runs (about five minutes on two quiet cores), the schedule at 1,024 ranks
    python bench/plan.py runs [--only federate] [--rates FILE] [--repeats 1] [--brief]
    python bench/plan.py schedule   # idle share by deal, ranks and population; no run, half a minute

The split is FITTED and JUDGED below, and fixed. The judged runs are of other sizes, most of them larger than any fitted
one, on 1, 2 and 4 processes. A run is one stage as `fedscale STAGE` carries it out, in ranks that are forked from a
process with the libraries imported; its time is the one that the stage wrote into its `done.json`. What a stage reads
(shards, client store, captions, a model to align) is made before. `--brief` has half of the rounds, epochs and
images, to see that everything works; the errors are then those of starting and noise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PRELOADED = [
    "fedscale.api", "fedscale.pipeline", "fedscale.federated.rounds", "fedscale.server.pretrain",
    "fedscale.server.align", "fedscale.server.caption", "fedscale.distributed.accelerator", "accelerate", "open_clip",
    "peft", "transformers.models.llava.modeling_llava", "torch.distributed.tensor", "torch._dynamo",
    "torch.utils.flop_counter",
]  # fmt: skip
SECONDS = 300  # that a run may take
UNTOLD = ("engine", "prompt_file")  # keys that go without saying in a case's name
BRIEF = 2
DISTURBED = 0.15  # cores that others take during a run, above which it is made again where --repeats allows


@dataclass(frozen=True)
class Case:
    """One stage of one run on `ranks` processes; `overlay` has what differs from BASE, by section."""

    stage: str
    ranks: int
    overlay: dict[str, Any]

    @property
    def name(self) -> str:
        told: list[str] = []
        for section, keys in self.overlay.items():
            for key, value in keys.items():
                inner = value.items() if isinstance(value, dict) else [(key, value)]
                told += [
                    f"{name}={one}" for name, one in inner if name not in UNTOLD and BASE[section].get(key) != value
                ]
        return f"{self.stage} × {self.ranks}: {', '.join(told)}"


BASE: dict[str, Any] = {
    "name": "plan",
    "device": "cpu",
    "threads": 1,
    "data": {
        "recipe": "shards/shapes.yaml", "format": "shapes", "name": "shapes", "imbalance_factor": 20,
        "samples_per_shard": 500, "image_size": 32, "shapes": {"train_per_class": 300},
        "open_pool": {"reserve": 100, "validation": 20}, "partition": {"clients": 10},
    },
    "model": {"name": "resnet8", "width": 8},
    "teachers": {
        "clip": {"model": "teachers/shapes/clip", "pretrained": None},
        "mllm": {"model": "teachers/shapes/llava"},
    },
    "caption": {"engine": "template", "max_new_tokens": 12},
    "pretrain": {
        "enabled": False, "epochs": 2, "batch_size": 32, "language_model": "frozen", "probe": {"enabled": False},
    },
    "federate": {
        "rounds": 6, "clients_per_round": 8, "local_epochs": 2, "batch_size": 16, "backend": "loop", "lr": 0.05,
    },
    "align": {"enabled": False, "labels": "keyword", "images_per_class": 40, "epochs": 5, "batch_size": 32},
    "eval": {"every": 100, "batch_size": 100},
}  # fmt: skip


def federate(ranks: int, images: int = 300, clients: int = 10, width: int = 8, **settings: Any) -> Case:
    """Stage 2: `images` a class before the tail is cut."""
    data = {"shapes": {"train_per_class": images}, "partition": {"clients": clients}}
    return Case("federate", ranks, {"data": data, "model": {"width": width}, "federate": settings})


def pretrain(ranks: int, width: int = 8, **settings: Any) -> Case:
    return Case("pretrain", ranks, {"model": {"width": width}, "caption": {"max_images": 1000}, "pretrain": settings})


def align(ranks: int, width: int = 8, **settings: Any) -> Case:
    return Case("align", ranks, {"model": {"width": width}, "align": settings})


def caption(ranks: int, **settings: Any) -> Case:
    return Case(
        "caption", ranks, {"caption": {"engine": "hf", "prompt_file": "configs/prompts/plain.yaml", **settings}}
    )


BATCHED = {"backend": "batched"}
FITTED = (
    federate(1, rounds=5),
    federate(1, rounds=2, local_epochs=1),
    federate(1, width=4, rounds=7, batch_size=8),
    federate(1, width=16, rounds=2),
    federate(1, width=16, rounds=5, batch_size=32, clients_per_round=4),
    federate(1, images=600, rounds=2, batch_size=32),
    federate(2, rounds=5),
    federate(2, width=16, rounds=4, clients_per_round=6),
    federate(2, width=4, rounds=14, local_epochs=1),
    federate(1, rounds=5, lanes=4, **BATCHED),
    federate(1, width=16, rounds=2, lanes=2, **BATCHED),
    federate(1, width=4, rounds=6, lanes=8, batch_size=8, **BATCHED),
    federate(2, rounds=6, lanes=2, **BATCHED),
    pretrain(1),
    pretrain(1, epochs=1, batch_size=16),
    pretrain(1, width=16, epochs=2),
    pretrain(2, epochs=3),
    pretrain(2, width=16, epochs=2, batch_size=64),
    align(1),
    align(1, width=16, epochs=6),
    align(1, images_per_class=80, epochs=5, batch_size=64),
    align(2),
    align(2, width=16, epochs=3, images_per_class=60),
    caption(1, batch_size=64, max_images=500),
    caption(1, batch_size=16, max_images=500, kinds=["description"]),
    caption(1, batch_size=128, max_images=1000, kinds=["description", "reasoning"]),
    caption(2, batch_size=64, max_images=1000),
)
JUDGED = (
    federate(1, images=900, rounds=3, batch_size=20),
    federate(1, width=24, rounds=2, clients_per_round=5),
    federate(2, images=900, clients=20, rounds=4, clients_per_round=12),
    federate(2, width=24, rounds=2),
    federate(4, images=600, clients=20, rounds=4, clients_per_round=16),
    federate(4, width=16, rounds=4, clients_per_round=8),
    federate(1, images=600, rounds=3, lanes=4, **BATCHED),
    federate(2, width=16, rounds=4, lanes=4, **BATCHED),
    federate(4, images=600, clients=20, rounds=4, clients_per_round=16, lanes=2, **BATCHED),
    pretrain(1, width=12, epochs=4, batch_size=48),
    pretrain(2, width=24, epochs=2),
    pretrain(4, width=16, epochs=3, batch_size=48),
    align(1, width=24, epochs=6),
    align(2, images_per_class=80),
    align(4, images_per_class=60, epochs=8, batch_size=48),
    caption(1, batch_size=32, max_images=1000),
    caption(2, batch_size=128, max_images=2000, kinds=["reasoning"]),
)


def config_of(case: Case, out: Path, brief: bool = False) -> Any:
    """The case's config, its run folder below `out`."""
    from fedscale.config import overlaid
    from fedscale.config.schema import Config

    enabled = {case.stage: {"enabled": True}} if case.stage in ("pretrain", "align") else {}
    enabled |= {"align": {"enabled": True}} if case.stage == "caption" else {}
    config = Config()
    for overlay in (BASE, enabled, case.overlay, {"out": str(out)}):
        config = overlaid(config, overlay)
    if case.stage == "align":
        config = overlaid(config, {"federate": {"rounds": 0}})
    if not brief:
        return config
    parts = {"federate": ("rounds",), "pretrain": ("epochs",), "align": ("epochs",), "caption": ("max_images",)}[
        case.stage
    ]
    section = getattr(config, case.stage)
    return overlaid(config, {case.stage: {name: max(1, getattr(section, name) // BRIEF) for name in parts}})


def rank(number: int, count: int, port: int, config: Any, stages: list[str]) -> None:
    """Carry out the stages as one of the ranks."""
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if count == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from fedscale import api

    torch.set_num_threads(1)
    for stage in stages:
        if stage == "data":
            from fedscale.pipeline import prepare_data

            prepare_data(config, api.Session())
        else:
            api.stage(config, stage)
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    Path(config.out).mkdir(parents=True, exist_ok=True)
    (Path(config.out) / f"cpu{number}").write_text(str(sum(one.ru_utime + one.ru_stime for one in spent)))


def launched(count: int, config: Any, stages: list[str]) -> float:
    """Start the ranks and wait for them; the CPU seconds that they took. Ends the benchmark where one fails."""
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [context.Process(target=rank, args=(n, count, port, config, stages)) for n in range(count)]
    for process in processes:
        process.start()
    end = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    failed = [process for process in processes if process.exitcode != 0]
    for process in processes:
        process.kill()
    if failed:
        sys.exit(f"{stages} of {config.out}: a rank ended with {failed[0].exitcode}")
    return sum(float((Path(config.out) / f"cpu{n}").read_text()) for n in range(count))


def busy() -> float:
    """CPU seconds of all processes of this machine since its start."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # less idle, and waiting for disks


def carried_out(case: Case, out: Path, brief: bool, repeats: int) -> tuple[float, Any]:
    """(cores that others took meanwhile, what `fit.runs_in` makes of the run), of `repeats` the least disturbed."""
    from fedscale.planning.fit import runs_in
    from fedscale.runs import RunFolder

    found: list[tuple[float, Any]] = []
    for repeat in range(repeats):
        config = config_of(case, out / str(repeat), brief)
        before = {"pretrain": ["caption"], "align": ["caption", "federate"]}.get(case.stage, [])
        launched(1, config, ["data", *before])
        began, before_us = time.perf_counter(), busy()
        own = launched(case.ranks, config, [case.stage])
        others = (busy() - before_us - own) / (time.perf_counter() - began)
        made = runs_in([RunFolder.of(config).path], "cpu")
        found.append((others, next(run for run in made if run.stage.partition(" ")[0] == case.stage)))
        if others < DISTURBED:
            break
    return min(found, key=lambda one: one[0])


def in_turn() -> list[Case]:
    """Fitted and judged runs mixed, so that what else the machine does meets both."""
    places = [(index / len(cases), case) for cases in (FITTED, JUDGED) for index, case in enumerate(cases)]
    return [case for _, case in sorted(places, key=lambda place: place[0])]


def _kept(path: Path | None) -> list[dict[str, Any]]:
    from fedscale import files

    return files.read_json(path) if path and path.exists() else []


def runs(only: str, brief: bool, rates_file: Path | None, repeats: int, kept: Path | None) -> float:
    """Make the runs, fit, judge; returns the largest error of a judged run."""
    from fedscale import files
    from fedscale.planning.fit import Measured, fitted
    from fedscale.planning.hardware import hardware
    from fedscale.planning.predict import total_seconds
    from fedscale.planning.work import Work

    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    os.environ["PYTHONWARNINGS"] = "ignore"
    began, home = time.perf_counter(), os.getcwd()
    measured = {run["name"]: Measured(**{**run, "work": Work(run["work"])}) for run in _kept(kept)}
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the start", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number, case in enumerate(in_turn()):
                if only in case.stage and case.name not in measured:
                    others, measured[case.name] = carried_out(case, Path(folder) / str(number), brief, repeats)
                    told = f"{measured[case.name].seconds:7.2f} s, others {others:4.2f} cores: {case.name}"
                    print(told, file=sys.stderr, flush=True)
        finally:
            os.chdir(home)
    if kept:
        files.write_json(
            kept, [{**vars(run), "name": name, "work": run.work.amounts} for name, run in measured.items()]
        )
    node = hardware("cpu")
    rates = fitted([measured[case.name] for case in FITTED if case.name in measured], "cpu")
    if rates_file:
        rates.save(rates_file)
    worst = 0.0
    for title, cases in (("fitted", FITTED), ("judged", JUDGED)):
        print(f"\n{title:<86}{'predicted':>10}{'measured':>10}{'error':>8}")
        errors = []
        for case in cases:
            if case.name in measured:
                run = measured[case.name]
                found = total_seconds(run.work, node, rates.of(run.stage, node)[0])[0]
                errors.append(found / run.seconds - 1)
                print(f"{case.name[:85]:<86}{found:>9.2f}s{run.seconds:>9.2f}s{errors[-1]:>+8.1%}")
        if errors:
            sizes = np.abs(errors)
            print(f"{title}: {len(errors)} runs, mean error {sizes.mean():.1%}, worst {sizes.max():.1%}")
            worst = float(sizes.max())
    print(f"load {os.getloadavg()[0]:.1f} at the end; {time.perf_counter() - began:.0f} s in all")
    return worst


def populations() -> dict[str, Any]:
    """Clients by images: the published protocols' equal ones, and a million of log-normal sizes."""
    from fedscale.planning.schedule import Population

    class Remembered(Population):
        """Forms a round's groups once, whatever the number of ranks and the deal."""

        def groups(self, number: int) -> list[list[int]]:
            known = vars(self).setdefault("known", {})
            if number not in known:
                known[number] = super().groups(number)
            return known[number]

    draws = np.random.default_rng(7)
    spread = np.maximum(1, np.exp(draws.normal(np.log(30), 1.0, 1_000_000))).astype(np.int64)
    cut = np.minimum(spread, 256)
    return {
        "CIFAR-10-LT, 8 of 20 clients": Remembered(np.full(20, 559), 8, 1, 32, 10, 7),
        "ImageNet-LT, 8 of 20": Remembered(np.full(20, 5793), 8, 1, 32, 10, 7),
        "10^6, 10,240 a round": Remembered(spread, 10_240, 1, 10, 1, 7),
        "10^6, 102,400 a round": Remembered(spread, 102_400, 1, 10, 1, 7),
        "10^6, 102,400 a round, K = 8": Remembered(spread, 102_400, 8, 10, 1, 7),
        "the same, even groups": Remembered(spread, 102_400, 8, 10, 1, 7, even_groups=True),
        "K = 8, 256 images at most": Remembered(cut, 102_400, 8, 10, 1, 7),
    }


def schedule(rounds: int, noise: float) -> None:
    """Idle share of the ranks, in percent, by deal."""
    from fedscale.planning.schedule import DEALS, simulated

    print(f"idle share in percent; {rounds} rounds, a group's time is exp({noise}·z) times what its steps say")
    print(f"{'clients':<32}{'ranks':>6}" + "".join(f"{deal:>10}" for deal in DEALS))
    for name, population in populations().items():
        for ranks in (8, 64, 1024):
            shares = [simulated(population, ranks, rounds, noise, deal=deal) for deal in DEALS]
            print(f"{name:<32}{ranks:>6,}" + "".join(f"{100 * share:>10.1f}" for share in shares), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["runs", "schedule", "all"], default="all")
    parser.add_argument("--only", default="", help="a stage")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument(
        "--repeats", type=int, default=1, help="tries at a run that others disturb; the least disturbed counts"
    )
    parser.add_argument("--rates", type=Path, help="where to write the fitted rates")
    parser.add_argument("--kept", type=Path, help="keeps what was measured; a case that is in it is not run again")
    parser.add_argument("--rounds", type=int, default=4, help="of the schedule's simulation")
    parser.add_argument("--noise", type=float, default=0.1, help="σ of the logarithm of a group's time")
    parser.add_argument("--json", action="store_true", help="of the runs: the worst error")
    asked = parser.parse_args()
    if asked.what in ("runs", "all"):
        worst = runs(asked.only, asked.brief, asked.rates, asked.repeats, asked.kept)
        if asked.json:
            print(json.dumps({"worst": worst}))
    if asked.what in ("schedule", "all"):
        schedule(asked.rounds, asked.noise)


if __name__ == "__main__":
    main()
