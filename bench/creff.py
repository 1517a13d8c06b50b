"""CReFF's server step beside a plain autograd loop as its official code has it, on the same numbers.

python bench/creff.py [--classes 10] [--width 256] [--repeats 3] [--threads 1] [--device cpu] [--json]

The step is what a round adds at the server: 100 steps that match features to gradients (in the plain loop class after
class, with create_graph), then a new head for 300 epochs of batches of 32, 9,600 SGD steps at 10 classes. Both take
turns; the ratio is the median of the turns' ratios. `difference` is the largest of features and head, relative to the
largest element.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.method_options import CreffOptions
from fedscale.config.schema import FederateConfig
from fedscale.federated.methods import Problem, ServerWork
from fedscale.federated.methods.creff import CReFF
from fedscale.federated.methods.features import initial_head
from fedscale.rng import torch_generator

SEED = 11


def plain_matching(
    features: Tensor, head: nn.Linear, weights: Tensor, biases: Tensor, present: Tensor, options: CreffOptions
) -> Tensor:
    """The features [C, n, D] after the matching steps; the clients' mean gradients are [C, C, D] and [C, C]."""
    each = features.shape[1]
    kept = features.clone().requires_grad_()
    optimizer = torch.optim.SGD([kept], lr=options.match_lr)
    for _ in range(options.match_steps):
        loss = kept.new_zeros(())
        for label in present.nonzero()[:, 0].tolist():
            labels = torch.full((each,), label, dtype=torch.long, device=kept.device)
            own = F.cross_entropy(head(kept[label]), labels)
            found = torch.autograd.grad(own, (head.weight, head.bias), create_graph=True)
            wanted = weights[label], biases[label]
            for a, b in ((found[0], wanted[0]), (found[1][None], wanted[1][None])):
                cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-6)
                loss = loss + (1 - cosine).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kept.detach()


def plain_training(features: Tensor, head: nn.Linear, draws: torch.Generator, options: CreffOptions) -> None:
    """Train the new head in place."""
    classes, each, width = features.shape
    inputs, labels = features.reshape(-1, width), torch.arange(classes, device=features.device).repeat_interleave(each)
    optimizer, criterion = torch.optim.SGD(head.parameters(), lr=options.head_lr), nn.CrossEntropyLoss()
    for _ in range(options.head_epochs):
        order = torch.randperm(len(inputs), generator=draws).to(features.device)
        for rows in order.split(options.head_batch):
            optimizer.zero_grad()
            criterion(head(inputs[rows]), labels[rows]).backward()
            optimizer.step()


def linear(head: Tensor) -> nn.Linear:
    """A head [C, D + 1] as a module."""
    module = nn.Linear(head.shape[1] - 1, len(head), dtype=head.dtype, device=head.device)
    with torch.no_grad():
        module.weight.copy_(head[:, :-1])
        module.bias.copy_(head[:, -1])
    return module


def plain_work(work: ServerWork, options: CreffOptions) -> tuple[Tensor, Tensor]:
    """What CReFF's `server_work` makes: features and head."""
    told = work.reports["present"]
    mean = (work.reports["gradients"] / told.clamp(min=1e-12)[:, None, None]).to(work.shared["features"])
    before = work.shared["features"], linear(work.shared["head"])
    features = plain_matching(*before, mean[..., :-1], mean[..., -1], told > 0, options)
    draws = torch_generator(work.seed, "head")
    head = linear(initial_head(features.shape[0], features.shape[2], draws).to(features))
    plain_training(features, head, draws, options)
    return features, torch.cat([head.weight, head.bias[:, None]], dim=1).detach()


def example(classes: int, width: int, dtype: torch.dtype, device: str, **options: Any) -> tuple[CReFF, ServerWork]:
    """A method and its first round's work: gradients of random heads at random features, one class without any."""
    method = CReFF(FederateConfig(method="creff", options=options), Problem(classes, width, 20))
    shared = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in method.shared.items()}
    method.first_shared(shared, SEED)
    draws = torch_generator(SEED, "clients")
    gradients = torch.zeros(classes, classes, width + 1, dtype=torch.float64)
    head = shared["head"].double().cpu()
    for label in range(classes):
        features = torch.randn(50, width, generator=draws, dtype=torch.float64).add(0.3 * label).relu()
        errors = (features @ head[:, :-1].T + head[:, -1]).softmax(1)
        errors[:, label] -= 1
        gradients[label] = errors.T @ F.pad(features, (0, 1), value=1.0) / len(features)
    present = torch.full((classes,), 0.5, dtype=torch.float64)
    present[-1] = 0.0
    reports = {"gradients": gradients * present[:, None, None], "present": present}
    reports = {name: value.to(device) for name, value in reports.items()}
    return method, ServerWork(nn.Identity(), shared, reports, {}, 8, 1, SEED, None, None, {})


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest one, relative to the largest element."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of one call (on a CPU those of the process, which other programs do not change), and what it gave."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = clock()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    options, ours, plain, apart = CreffOptions(), list[float](), list[float](), list[float]()
    for turn in range(asked.repeats):
        method, work = example(asked.classes, asked.width, torch.float32, asked.device)
        _, again = example(asked.classes, asked.width, torch.float32, asked.device)

        def step(method: CReFF = method, work: ServerWork = work) -> None:
            method.server_work(work)

        def loop(work: ServerWork = again) -> tuple[Tensor, Tensor]:
            return plain_work(work, options)

        if turn % 2:
            seconds, wanted = timed(loop, asked.device)
            own, _ = timed(step, asked.device)
        else:
            own, _ = timed(step, asked.device)
            seconds, wanted = timed(loop, asked.device)
        ours.append(own)
        plain.append(seconds)
        found = work.shared["features"], work.shared["head"]
        apart.append(max(difference(a, b) for a, b in zip(found, wanted, strict=True)))
    result = {
        "classes": asked.classes,
        "width": asked.width,
        "sgd_steps": options.head_epochs * -(-asked.classes * options.features // options.head_batch),
        "seconds": statistics.median(ours),
        "plain_seconds": statistics.median(plain),
        "ratio": statistics.median(b / a for a, b in zip(ours, plain, strict=True)),
        "difference": max(apart),
        "repeats": asked.repeats,
        "threads": asked.threads,
        "clock": "wall" if asked.device == "cuda" else "process",
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    if asked.json:
        print(json.dumps(result, indent=1))
    else:
        print(
            f"CReFF's server step, {asked.classes} classes of {asked.width} features: {result['seconds']:.2f} s; plain "
            f"autograd loop {result['plain_seconds']:.2f} s, {result['ratio']:.1f} times; difference "
            f"{result['difference']:.1e}"
        )


if __name__ == "__main__":
    main()
