"""The federated engine beside its peers: B1 (lr, mlp), B2 on a CPU (lenet, simple_cnn), B3 (femnist), B4 (resnet8).

    python bench/peers/environments.py                  # once: a virtual environment a peer, with the same torch
    python bench/engine.py lr mlp lenet                 # all engines in turn, three times; --json for programs

Every engine trains the same model from the same weights on the same file and cohorts (bench/workloads.py), one thread,
without evaluation. A figure is the median over the repeats of the median round (the first one left out) in CPU seconds
of all its processes; a ratio is that of a peer over ours. Losses are those of the last global model on all images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workloads import WORKLOADS

BENCH = Path(__file__).absolute().parent
PEERS = ("pfl", "fedlab", "fedjax", "flower")
ROUNDS = {"lr": 20, "mlp": 20, "lenet": 8, "simple_cnn": 4, "femnist": 6, "resnet8": 4}


def run(engine: str, workload: str, data: Path, rounds: int, *words: str) -> dict[str, Any]:
    """One measurement: the JSON line of an engine's runner, or what went wrong."""
    python = Path(sys.executable) if engine == "fedscale" else BENCH / ".peers" / engine / "bin" / "python"
    if not python.exists():
        return {"error": "no environment: run bench/peers/environments.py"}
    script = BENCH / "peers" / f"{engine}_runner.py"
    command = [str(python), str(script), "--workload", workload, "--data", str(data), "--rounds", str(rounds), *words]
    # Ours chooses its backend anew, as on a machine that has never seen the model.
    environment = {**os.environ, "XDG_CACHE_HOME": str(data.parent / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"peer"')]
    if not lines:
        return {"error": (done.stderr.strip().splitlines() or ["nothing was printed"])[-1][:200]}
    chosen = [line for line in done.stderr.splitlines() if line.startswith("federate: backend")]
    return json.loads(lines[-1]) | {"backend": chosen[-1].split(" (")[0] if chosen else ""}


def measured(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of an engine's repeats."""
    rounds = [statistics.median(result["round_cpu_seconds"][1:]) for result in results]
    return {
        "cpu_seconds": statistics.median(rounds),
        "spread": [min(rounds), max(rounds)],
        "wall_seconds": statistics.median(statistics.median(result["round_seconds"][1:]) for result in results),
        "startup_seconds": statistics.median(result["startup_seconds"] for result in results),
        "peak_rss_mib": round(max(result["peak_rss_bytes"] for result in results) / 2**20),
        "loss": results[-1]["final_loss"],
        "backend": results[-1].get("backend", ""),
    }


def compare(workload: str, engines: list[str], repeats: int, rounds: int) -> dict[str, Any]:
    """All engines in turn, `repeats` times, and ours once more in the peers' order of images, for the loss."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        models = BENCH / "peers" / "models.py"
        subprocess.run([sys.executable, str(models), "--workload", workload, str(data)], check=True)
        results: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        for repeat in range(repeats):
            for engine in engines:
                results[engine].append(run(engine, workload, data, rounds))
                told = results[engine][-1]
                shown = told.get("error") or f"{statistics.median(told['round_cpu_seconds'][1:]):.4f} CPU-s a round"
                print(f"{workload} {repeat + 1}/{repeats} {engine}: {shown}", file=sys.stderr, flush=True)
        given = run("fedscale", workload, data, rounds, "--given-order")
    failed = {engine: found[-1]["error"] for engine, found in results.items() if any("error" in one for one in found)}
    table = {engine: measured(found) for engine, found in results.items() if engine not in failed}
    if "fedscale" in table and "error" not in given:
        table["fedscale"]["loss"] = given["final_loss"]
    return {"workload": workload, "rounds": rounds, "load": os.getloadavg()[0], "engines": table, "failed": failed}


def show(comparison: dict[str, Any]) -> None:
    """The comparison as a table."""
    ours = comparison["engines"].get("fedscale", {}).get("cpu_seconds")
    print(f"\n{comparison['workload']}: {comparison['rounds']} rounds, load {comparison['load']:.1f}")
    print(
        f"{'engine':<10}{'CPU-s/round':>12}{'min':>9}{'max':>9}{'wall':>9}"
        f"{'ratio':>8}{'start s':>9}{'MiB':>7}{'loss':>10}"
    )
    for engine, row in comparison["engines"].items():
        low, high = row["spread"]
        ratio = f"{row['cpu_seconds'] / ours:.2f}" if ours else ""
        print(
            f"{engine:<10}{row['cpu_seconds']:>12.4f}{low:>9.4f}{high:>9.4f}{row['wall_seconds']:>9.4f}{ratio:>8}"
            f"{row['startup_seconds']:>9.1f}{row['peak_rss_mib']:>7}{row['loss']:>10.5f}  {row['backend']}"
        )
    for engine, reason in comparison["failed"].items():
        print(f"{engine:<10}{reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--engines", nargs="+", default=["fedscale", *PEERS], choices=["fedscale", *PEERS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="of each run; by default as many as a workload needs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    compared = []
    for workload in options.workloads:
        compared.append(compare(workload, options.engines, options.repeats, options.rounds or ROUNDS[workload]))
        if not options.json:
            show(compared[-1])
    if options.json:
        print(json.dumps(compared, indent=1))


if __name__ == "__main__":
    main()
