"""The engine on one GPU: pfl's CIFAR10 benchmark, the published protocol, backends against one another.

    python bench/engine_gpu.py pfl          # 1,500 rounds, simple_cnn, 50 of 1,000 clients; aim: 60 s
    python bench/engine_gpu.py protocol     # ResNet-8, 200 rounds, 8 of 20 clients, 10 epochs; aim: 5 minutes
    python bench/engine_gpu.py backends     # client steps a second of loop, batched and graph, K = 1, 4, 8, 16, 32
    python bench/aggregate.py --device cuda # the Triton aggregation as a share of the copy bandwidth

Images are random, since seconds do not depend on what they show, and nothing is evaluated. `--tiny` tries the script
on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from fedscale.config import overlaid
from fedscale.config.schema import Config, ModelConfig
from fedscale.distributed.mesh import Mesh
from fedscale.federated.data import RoundData
from fedscale.federated.engine import Engine
from fedscale.federated.setup import build_engine, pinned_arithmetic
from fedscale.models import build_model

PFL = {"clients": 1000, "images": 50, "clients_per_round": 50, "local_epochs": 1, "batch_size": 10, "augment": "none"}
PROTOCOL = {
    "clients": 20, "images": 620, "clients_per_round": 8, "local_epochs": 10, "batch_size": 32, "augment": "crop_flip",
}  # fmt: skip


def engine_of(case: dict[str, Any], model: ModelConfig, device: torch.device, **federate: Any) -> Engine:
    """The engine of a case on random images."""
    clients, images = case["clients"], case["images"]
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (clients * images, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, clients * images)
    settings = {name: value for name, value in case.items() if name not in ("clients", "images")} | federate
    config = overlaid(Config(), {"data": {"partition": {"clients": clients}}, "federate": {"lr": 0.01, **settings}})
    data = RoundData(pixels, labels, device, (0.5,) * 3, (0.25,) * 3, config.federate.augment)
    held = [np.arange(client * images, (client + 1) * images) for client in range(clients)]
    torch.manual_seed(0)
    return build_engine(config, build_model(model, 10), data, held, Mesh(device=device), say=print)


def seconds_of(engine: Engine, device: torch.device, rounds: int) -> float:
    """Seconds of `rounds` rounds, after two that warm up."""
    for number in (1, 2):
        engine.round(number)
    synchronise(device)
    began = time.perf_counter()
    for number in range(3, 3 + rounds):
        engine.round(number)
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_loop(case: dict[str, Any], model: ModelConfig, device: torch.device, steps: int) -> float:
    """Seconds of a client's step as the plain peers do it: one model, torch.optim.SGD, tensors in memory."""
    net: nn.Module = build_model(model, 10).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    images = torch.randn(case["batch_size"], 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (case["batch_size"],), device=device)
    for step in range(steps + 3):
        if step == 3:
            synchronise(device)
            began = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    synchronise(device)
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["pfl", "protocol", "backends"])
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="tf32")
    parser.add_argument("--rounds", type=int, help="by default all of the benchmark's")
    parser.add_argument("--tiny", action="store_true", help="few rounds of a narrow model, on whatever device there is")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("no CUDA GPU is visible to torch; --tiny tries the script on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, --tiny: no figure to quote"
    resnet = ModelConfig("resnet8", 8 if options.tiny else 64)
    case, model = (PFL, ModelConfig("simple_cnn")) if options.what == "pfl" else (PROTOCOL, resnet)
    if options.tiny:
        case = case | {"clients": 8, "images": 40, "clients_per_round": 4, "local_epochs": 1}
    with pinned_arithmetic(overlaid(Config(), {"federate": {"precision": options.precision}}), device):
        measure = backends if options.what == "backends" else benchmark
        found = measure(options, case, model, device)
    print(json.dumps({"card": card, "precision": options.precision, "what": options.what, **found}, indent=1))


def backends(
    options: argparse.Namespace, case: dict[str, Any], model: ModelConfig, device: torch.device
) -> dict[str, Any]:
    """Client steps a second of each backend and number of lanes."""
    found = {}
    for backend, lanes in [("loop", 1)] + [(b, k) for b in ("batched", "graph") for k in (1, 4, 8, 16, 32)]:
        if options.tiny and (backend == "graph" or lanes > 4):
            continue
        cohort = case | {"clients": max(case["clients"], lanes), "clients_per_round": max(8, lanes)}
        if options.tiny:
            cohort |= {"clients": 8}
        engine = engine_of(cohort, model, device, backend=backend, lanes=lanes, precision=options.precision)
        rounds = options.rounds or 2
        seconds = seconds_of(engine, device, rounds)
        found[f"{backend}, K = {lanes}: client steps/s"] = round(rounds * steps_of(cohort) / seconds, 1)
    return found


def benchmark(
    options: argparse.Namespace, case: dict[str, Any], model: ModelConfig, device: torch.device
) -> dict[str, Any]:
    """Seconds of the benchmark, and of a few of its rounds in the loop backend and in a plain loop."""
    rounds = options.rounds or (2 if options.tiny else {"pfl": 1500, "protocol": 200}[options.what])
    ten = 1 if options.tiny else 10
    engine = engine_of(case, model, device, precision=options.precision)
    found = {"rounds": rounds, "backend": engine.backend.name, "lanes": engine.backend.lanes}
    found["seconds"] = round(seconds_of(engine, device, rounds), 2)
    loop = engine_of(case, model, device, precision=options.precision, backend="loop")
    found[f"loop backend: seconds of {ten} rounds"] = round(seconds_of(loop, device, ten), 2)
    plain = plain_loop(case, model, device, 20 if options.tiny else 300)
    found[f"plain loop: seconds of {ten} rounds"] = round(ten * steps_of(case) * plain, 2)
    return found


def steps_of(case: dict[str, Any]) -> int:
    """The clients' steps of a round."""
    steps: int = case["clients_per_round"] * case["local_epochs"] * -(-case["images"] // case["batch_size"])
    return steps


if __name__ == "__main__":
    main()
