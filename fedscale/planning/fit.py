"""Rates from runs that were made: the seconds that their stages took, by non-negative least squares over the work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedscale import files
from fedscale.config import load_config
from fedscale.config.schema import Config
from fedscale.data.partition import Partition
from fedscale.errors import UserError
from fedscale.planning.caption import texts_of
from fedscale.planning.cluster import Cluster
from fedscale.planning.counts import Counts, counts_of, sizes_of
from fedscale.planning.hardware import hardware, sheet
from fedscale.planning.rates import Rates
from fedscale.planning.work import KINDS, StageWork, Work

PRIOR, POOLED = 1e-4, 1e-2  # weights of the data sheet's rates, and of all stages' together, beside one run's error
STAGES = ("caption", "pretrain", "federate", "align")


@dataclass(frozen=True)
class Measured:
    """A stage that was carried out: its work by this model, and the seconds that it took."""

    name: str
    stage: str
    work: Work
    seconds: float


def fitted(runs: Sequence[Measured], gpu: str, cores: int = 0) -> Rates:
    """The rates that these runs tell, stage by stage; of kinds of work that a stage's runs do not have, none.

    Minimised is Σ (predicted/measured − 1)² over the runs, with rates of 0 or more: over all runs first, near the data
    sheet where they do not tell kinds apart, and over each stage's own then, near the rates of all. Raises UserError
    without a run.
    """
    if not runs:
        raise UserError("--fit: no finished stage found; name run folders such as runs/demo")
    prior = sheet(hardware(gpu, cores))
    stages = sorted({run.stage for run in runs})
    pooled = {
        kind: (seconds, 1.0) for kind, seconds in _fit(runs, {k: (v, 1.0) for k, v in prior.items()}, PRIOR).items()
    }
    # Of what no run spends time on, none is expected in a stage either.
    known = {kind: pooled[kind] if pooled.get(kind, (0.0,))[0] > 0 else (prior[kind], 0.0) for kind in KINDS}
    measured = {stage: _fit([run for run in runs if run.stage == stage], known, POOLED) for stage in stages}
    return Rates(gpu, measured, {stage: sum(run.stage == stage for run in runs) for stage in stages})


def _fit(runs: Sequence[Measured], expected: Mapping[str, tuple[float, float]], weight: float) -> dict[str, float]:
    """Seconds of a unit of each kind that the runs have; `expected` is a guess, and how many times that is expected."""
    from scipy.optimize import nnls

    kinds = [kind for kind in KINDS if any(run.work[kind] > 0 for run in runs)]
    fallback = max(guess for kind, (guess, _) in expected.items() if kind.startswith("conv."))  # crowd's has none
    guess = np.array([expected[kind][0] or fallback for kind in kinds])
    rows = np.array([[run.work[kind] for kind in kinds] for run in runs]) * guess
    rows /= np.array([run.seconds for run in runs])[:, None]
    pull = np.sqrt(weight) * np.eye(len(kinds))
    wanted = np.sqrt(weight) * np.array([expected[kind][1] for kind in kinds])
    times, _ = nnls(np.vstack([rows, pull]), np.concatenate([np.ones(len(runs)), wanted]))
    return {kind: float(value) for kind, value in zip(kinds, times * guess, strict=True)}


def runs_in(folders: Iterable[Path], gpu: str, per_node: int = 0) -> list[Measured]:
    """Every finished stage of run folders, each once. Raises UserError for a folder without any."""
    found: dict[Path, Measured] = {}
    for folder in folders:
        before = len(found)
        places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        for place in places:
            if (place / "config.yaml").exists():
                found.update(_of_run(place, gpu, per_node, found.keys()))
        if len(found) == before:
            raise UserError(f"--fit {folder}: no finished stage in it; expected a run folder such as runs/demo")
    return list(found.values())


def _of_run(place: Path, gpu: str, per_node: int, known: Iterable[Path]) -> dict[Path, Measured]:
    from fedscale.planning.plan import stage_works

    config, found = load_config([str(place / "config.yaml")]), {}
    cores = int(files.read_json(place / "environment.json")["cpus"] or os.cpu_count() or 1)
    for stage in STAGES:
        folder = (place / stage).resolve()
        if folder in known or not (folder / "done.json").exists():
            continue
        done = files.read_json(folder / "done.json")
        if "ranks" not in done or done.get("launches", 1) > 1:  # of an older version, or started several times
            continue
        ranks = int(done["ranks"])
        node = hardware(gpu, cores)
        each = min(ranks, per_node or (ranks if node.is_cpu else node.per_node))
        cluster = Cluster(node, -(-ranks // each), each)
        counts = _counts(config, place)
        works = stage_works(config, cluster, counts, (stage,), _answer_tokens(place, config))
        rated, work = works[stage].rated_as or stage, _together(stage, works)
        found[folder] = Measured(str(place), rated, work, float(done["seconds"]))
    return found


def _together(stage: str, works: Mapping[str, StageWork]) -> Work:
    """A stage's work with its evaluations, which its seconds hold."""
    beside = works.get(f"evaluation of {stage}")
    return works[stage].work + beside.work if beside else works[stage].work


def _counts(config: Config, place: Path) -> Counts:
    """The run's own numbers, its partition's sizes included where there is one."""
    counts = counts_of(config)
    path = place / "federate" / "partition.json"
    return replace(counts, sizes=sizes_of(Partition.load(path).clients)) if path.exists() else counts


def _answer_tokens(place: Path, config: Config) -> int:
    """Tokens of a text on average, as captioning counted them; 0 = the config's most."""
    path = place / "caption" / "done.json"
    if not path.exists():
        return 0
    done = files.read_json(path)
    texts = done["images"] * texts_of(config)
    return round(done["tokens"] / texts) if texts else 0
