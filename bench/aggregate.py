"""What averaging 20 clients costs (ENGINE B6), beside a copy of as many bytes: `python bench/aggregate.py`.

Every way takes its turn `--rounds` times; a ratio is the median over rounds of the ratios to that round's copy. On a
CPU the times are process CPU time with `--threads` threads; on a CUDA device (`--device cuda`) wall time after a
synchronisation, and "copy share" is the share of the copy bandwidth. State dicts are averaged as FedAvg codes do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedscale.federated.aggregation import Clip, clip_factors, lane_norms, make_accumulator

LANES = 20
CASES = ((1, 11_200_000), (62, 11_200_000), (300, 1_200_000))  # tensors, parameters
COPY, IN_PLACE, OUT_OF_PLACE = "copy of as many bytes", "dict, in place", "dict, out of place"
Ways = dict[str, Callable[[], Any]]


def widths_of(tensors: int, size: int) -> list[int]:
    """As unequal as layers are: log-normal shares."""
    shares = np.random.default_rng(0).lognormal(sigma=1.0, size=tensors)
    edges = np.round(np.concatenate([[0.0], np.cumsum(shares)]) / shares.sum() * size).astype(int)
    return np.diff(edges).tolist()


def ways_of(tensors: int, size: int, device: torch.device, robust: bool) -> Ways:
    """Every way to average the same clients, by name; each overwrites what it wrote before."""
    widths = widths_of(tensors, size)
    offsets = [sum(widths[:i]) for i in range(tensors)]
    draws = torch.Generator(device).manual_seed(0)
    buffer = torch.randn(LANES * size, generator=draws, device=device)
    blocks = [buffer[LANES * o : LANES * (o + w)].view(LANES, w) for o, w in zip(offsets, widths, strict=True)]
    counts = torch.arange(1, LANES + 1, dtype=torch.float64)
    weights = counts / counts.sum()
    bounds, start = lane_norms(blocks), torch.randn(size, generator=draws, device=device)
    clip = Clip(start, clip_factors(lane_norms(blocks, offsets, start), 1.0))
    accumulators = {kind: make_accumulator(kind, size, device) for kind in ("fp32", "fp64", "exact")}
    ways: Ways = {COPY: copies(size, device)}

    def adding(kind: str, **options: Any) -> Callable[[], None]:
        def add() -> None:
            accumulators[kind].add(blocks, offsets, weights, **options)
            accumulators[kind].used = 0.0  # type: ignore[attr-defined]  # the sum is never reset here, and may wrap

        return add

    for kind in accumulators:
        ways[f"flat, {kind}"] = adding(kind, bounds=bounds)
    for kind in accumulators:
        ways[f"flat, {kind}, every lane clipped"] = adding(kind, clip=clip, bounds=bounds)
    ways["lane norms"] = lambda: lane_norms(blocks)
    ways["lane norms of the updates"] = lambda: lane_norms(blocks, offsets, start)
    ways |= dict_ways([{str(i): b[lane].clone() for i, b in enumerate(blocks)} for lane in range(LANES)], weights)
    if robust:
        matrix = buffer.view(LANES, size)
        ways["median"] = lambda: matrix.median(dim=0).values
        ways["trimmed mean"] = lambda: matrix.sort(dim=0).values[4:-4].mean(dim=0)
        ways["Krum's Gram matrix"] = lambda: matrix @ matrix.t()
    return ways


def copies(size: int, device: torch.device) -> Callable[[], None]:
    """A copy that moves as many bytes as a sum does at least: it reads LANES vectors and writes one."""
    source = torch.ones((LANES + 1) * size // 2, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def dict_ways(states: list[dict[str, Tensor]], weights: Tensor) -> Ways:
    """State dicts averaged tensor by tensor."""
    factors = weights.tolist()

    def out_of_place() -> dict[str, Tensor]:
        mean = {name: tensor * factors[0] for name, tensor in states[0].items()}
        for state, factor in zip(states[1:], factors[1:], strict=True):
            for name in mean:
                mean[name] = mean[name] + state[name] * factor
        return mean

    kept = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}

    def in_place() -> None:
        for tensor in kept.values():
            tensor.zero_()
        for state, factor in zip(states, factors, strict=True):
            for name, tensor in kept.items():
                tensor.add_(state[name], alpha=factor)

    lists = [list(state.values()) for state in states]

    def foreach() -> None:
        total = list(kept.values())
        torch._foreach_zero_(total)
        for tensors, factor in zip(lists, factors, strict=True):
            torch._foreach_add_(total, tensors, alpha=factor)

    return {OUT_OF_PLACE: out_of_place, IN_PLACE: in_place, "dict, _foreach": foreach}


def timed(way: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        began = time.perf_counter()
        way()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.process_time()
    way()
    return time.process_time() - began


def measured(ways: Ways, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Median milliseconds of each way, and its ratios to the copy and the dicts of the same round."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way, device))

    def ratio(above: str, below: str) -> float:
        pairs = zip(seconds[above], seconds[below], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return {
        name: {
            "ms": 1e3 * statistics.median(seconds[name]),
            "copy_share": ratio(COPY, name),
            "times_fp32": ratio(name, "flat, fp32"),
            "faster_than_in_place": ratio(IN_PLACE, name),
            "faster_than_out_of_place": ratio(OUT_OF_PLACE, name),
        }
        for name in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each way; medians count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--robust", action="store_true", help="also median, trimmed mean and Krum's Gram matrix")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    results: list[dict[str, Any]] = []
    for tensors, size in CASES:
        ways = ways_of(tensors, size, device, options.robust and size < 10_000_000)
        case = {"device": str(device), "threads": options.threads, "clients": LANES, "tensors": tensors, "size": size}
        results.append({**case, "ways": measured(ways, options.rounds, device)})
        del ways  # the next case needs the memory
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        title = "{clients} clients, {size:,} parameters in {tensors} tensors, {device}, {threads} thread(s)"
        table = Table("way", "ms", "copy share", "× fp32", "speed-up: dict in place", "… out of place", box=None)
        table.title = title.format(**result)
        for name, row in result["ways"].items():
            ms, *ratios = row.values()
            table.add_row(name, f"{ms:.1f}", *(f"{value:.2f}" for value in ratios))
        Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
