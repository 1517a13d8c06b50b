"""What the command line does, for Python: `from fedscale import api` (docs/extending.md). Heavy imports wait for use.

    config = api.load_config("configs/demo.yaml", "variant=fedavg", "seeds=[1]")
    api.run(config)
    model, judged = api.load_model(config), api.evaluate(config)

A `Session` says where progress goes (`Session(TerminalReporter())`), and stops a stage from another thread; none is
silent. Mistakes in a config or its files raise UserError, a requested stop raises Stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedscale import plugins
from fedscale.config import Config, RecipeConfig, overlaid
from fedscale.config import load_config as load_words
from fedscale.errors import Stopped, UserError
from fedscale.progress import TerminalReporter
from fedscale.session import Session
from fedscale.stages import children

if TYPE_CHECKING:
    from fedscale.data.manifest import Manifest
    from fedscale.evaluation import Evaluation
    from fedscale.models import Classifier

__all__ = [
    "Session",
    "Stopped",
    "TerminalReporter",
    "UserError",
    "build_shards",
    "children",
    "evaluate",
    "fetch",
    "load_config",
    "load_model",
    "methods",
    "report",
    "run",
    "stage",
    "sweep",
]

WEIGHTS = {"pretrain": "export/model.safetensors", "federate": "model.safetensors", "align": "model.safetensors"}


def load_config(*words: str | Path, overlay: Mapping[str, Any] | None = None) -> Config:
    """The config that `fedscale run WORDS` reads, or the defaults without words; `overlay`, nested keys, goes over it.

    A class or function in the overlay (a method, a model, a data set) stands for its `package.module:Name`. Raises
    UserError for what the command line refuses, and for a class or function that has no such name.
    """
    base = load_words([str(word) for word in words]) if words else Config(name="python")
    return overlaid(base, _in_words(overlay or {}))


def _in_words(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(key): _in_words(value) for key, value in tree.items()}
    return plugins.word_of(tree) if callable(tree) else tree


def run(config: Config, session: Session | None = None) -> list[dict[str, Any]]:
    """`fedscale run`: every stage of every variant and seed, then the report, whose summary's rows are returned."""
    from fedscale.pipeline import execute

    session = session or Session()
    execute(config, session)
    return report(Path(config.out) / config.name, session=session)


def stage(config: Config, name: str, session: Session | None = None, **options: Any) -> None:
    """`fedscale caption`, `pretrain`, `federate` or `align`: that stage of every variant and seed that needs it.

    `options` are the stage's own: caption has `again`, `retry_failed`; pretrain has `profile`.
    """
    from fedscale.runs import RunFolder
    from fedscale.stages import MODULES, needed, run_stage, stage_folder

    if name not in MODULES:
        raise UserError(f"stage {name}: expected one of {', '.join(MODULES)}")
    session, seen = session or Session(), set[Path]()
    runs = [child for child in children(config) if name in needed(child)]
    if not runs:
        session.reporter.say(f"{name}: nothing to do, no run of this config has that stage")
    for child in runs:
        folder = stage_folder(child, name)
        if not (name == "caption" and child.caption.overwrite):
            folder.check()  # before the run folder says that it is of this config
        RunFolder.of(child).describe(child)
        if folder.path.resolve() not in seen:  # what child runs share is worked on once
            run_stage(child, name, session, **options)
        seen.add(folder.path.resolve())


def report(
    *runs: str | Path, out: str | Path | None = None, baseline: str = "", session: Session | None = None
) -> list[dict[str, Any]]:
    """`fedscale report`: compares run folders, writes report.html and the tables, and returns the summary's rows."""
    from fedscale.report import default_out
    from fedscale.report import report as write_report

    folders = [Path(path) for path in runs]
    return write_report(folders, Path(out or default_out(folders)), (session or Session()).reporter, baseline)


def sweep(*words: str | Path, session: Session | None = None) -> list[dict[str, Any]]:
    """`fedscale sweep WORDS`: tunes, carries out what is unfinished, and returns the report's rows.

    `fedscale.sweep` has the parts: `open_sweep(words)`, `runs(opened)`, which yields every run with its config,
    `execute_one`. Raises UserError also where runs diverged, after the report of the others.
    """
    from fedscale.sweep import execute, open_sweep
    from fedscale.sweep import report as write_report

    opened, session = open_sweep([str(word) for word in words]), session or Session()
    failed = execute(opened, session)
    rows = write_report(opened, session.reporter)
    if failed:
        raise UserError(f"{len(failed)} of the sweep's runs diverged: {failed[0]}")
    return rows


def load_model(config: Config, stage: str = "") -> Classifier:
    """The model that a finished stage (`pretrain`, `federate`, `align`) left, on the CPU, in evaluation mode.

    Without a `stage`, the run's final model: the aligned one, or the federated one where nothing is aligned.
    Raises UserError where the stage has left none, and for a config of several runs: `children(config)` are single.
    """
    from safetensors.torch import load_file

    from fedscale.models import build_model
    from fedscale.stages import needed, result_folder

    config = _single(config)
    stage = stage or needed(config)[-1]
    if stage not in WEIGHTS:
        raise UserError(f"stage {stage}: leaves no model; expected one of {', '.join(WEIGHTS)}")
    path = result_folder(config, stage).path / WEIGHTS[stage]
    if not path.exists():
        raise UserError(f"{path}: no such file; carry out the stage {stage} first")
    state = load_file(path)
    model = build_model(config.model, len(state["classifier.weight"]), config.data.image_size)
    model.load_state_dict(state)
    return model.eval()


def evaluate(
    config: Config, model: Classifier | None = None, stage: str = "", session: Session | None = None
) -> Evaluation:
    """Judge `model`, or the one that `load_model` gives, on every image of `eval.split`, as runs judge theirs."""
    import numpy as np

    from fedscale.data.build import ensure_shards
    from fedscale.data.store import open_store
    from fedscale.evaluation import evaluate as judged

    config, reporter = _single(config), (session or Session()).reporter
    model = load_model(config, stage) if model is None else model
    manifest = ensure_shards(config.data, reporter)
    train, store = (
        open_store(manifest, split, config.data.image_size, reporter, config.data.max_corrupt)
        for split in ("train", config.eval.split)
    )
    counts = np.bincount(train.labels, minlength=len(manifest.class_names)).tolist()
    return judged(model, store, manifest.class_names, counts, config)


def _single(config: Config) -> Config:
    runs = children(config)
    if len(runs) != 1:
        named = ", ".join(f"{child.variant} seed {child.seed}" for child in runs[:3])
        raise UserError(f"variants, seeds: {len(runs)} runs ({named}, …), expected one; choose of children(config)")
    return runs[0]


def fetch(config: Config, session: Session | None = None) -> list[str]:
    """`fedscale fetch`: download the teachers' weights; a line for each."""
    from fedscale.server.fetch import fetch as fetch_weights

    return list(fetch_weights(config, (session or Session()).reporter))


def methods() -> list[dict[str, Any]]:
    """`fedscale methods --json`: every method with its citation, cost, options and where it runs."""
    from fedscale.federated.methods.table import method_rows

    return method_rows()


def build_shards(recipe: RecipeConfig, out: str | Path, session: Session | None = None, jobs: int = 1) -> Manifest:
    """`fedscale shards build`: the manifest of the shards in `out`, built where they are not there yet."""
    from fedscale.data.build import build_shards as build

    return build(recipe, Path(out), (session or Session()).reporter, jobs)
