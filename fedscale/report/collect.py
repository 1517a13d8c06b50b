"""Run folders in, records out. Optional parts may be missing; a folder that is no run is refused in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fedscale import files
from fedscale.errors import UserError
from fedscale.report.captions import read_captions
from fedscale.report.records import METRICS, Collection, Cost, Evaluation, Fairness, ProbePoint, Run
from fedscale.report.tuning import read_tuning

T = TypeVar("T")

# The order of the ablation where no config tells another one.
USUAL_ORDER = ("fedavg", "pretrain", "align", "full")


def collect(paths: list[Path]) -> Collection:
    """All runs at `paths`; a parent stands for its children `<variant>-s<seed>`.

    An unfinished child is left out with its reason. Raises UserError for a path that is no run folder or that is
    given itself and not finished, and where nothing is finished.
    """
    if not paths:
        raise UserError("no run given: name at least one run folder, e.g. runs/demo")
    runs: list[Run] = []
    left_out: list[str] = []
    order: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        children = list(_children(path))
        if not children:
            raise UserError(f"{path}: {_why_no_run(path)}; expected a run folder such as runs/demo")
        order += _variants_of(path, children)
        for child in children:
            if child.resolve() in seen:
                continue
            seen.add(child.resolve())
            try:
                runs.append(read_run(child))
            except UserError as error:
                if child == path:
                    raise
                left_out.append(str(error))
    if not runs:
        raise UserError(f"{paths[0]}: no finished run in it ({left_out[0]})")
    runs = _distinct(runs)
    ranks = {name: rank for rank, name in reversed(list(enumerate([*order, *USUAL_ORDER])))}
    runs.sort(key=lambda run: (ranks.get(run.variant.rpartition("/")[2], len(ranks)), run.variant, run.seed))
    names = dict.fromkeys(path.resolve().name for path in paths)
    tunings = [found for path in paths if (found := read_tuning(path / "tuning.json"))]
    return Collection(" · ".join(names), tuple(runs), tuple(left_out), tuple(tunings))


def read_run(path: Path) -> Run:
    """One finished run folder. Raises UserError naming the stage that is missing, or the malformed file."""
    config = read_config(path / "config.yaml")
    stages = used_stages(config)
    federated = read_evaluation(path / "federate" / "evaluation.json", "federate")
    aligned = read_evaluation(path / "align" / "evaluation.json", "align") if "align" in stages else None
    done = {stage: _optional(path / stage / "done.json", {}) for stage in stages}
    environment = _optional(path / "environment.json", {})
    alignment_set = _optional(path / "align" / "alignment_set.json", {}) if "align" in stages else {}
    return Run(
        path=path,
        variant=str(config.get("variant") or config.get("name") or path.resolve().name),
        seed=int(config.get("seed", 0)),
        config=config,
        environment=environment,
        rounds=tuple(files.read_jsonl(path / "federate" / "metrics.jsonl")),
        federated=federated,
        aligned=aligned,
        probe=_read_probe(path / "pretrain" / "probe.json") if "pretrain" in stages else (),
        captions=read_captions(path / "caption", config) if "caption" in stages else None,
        seconds={stage: float(done[stage]["seconds"]) for stage in stages if "seconds" in done[stage]},
        agreement=_percent(done.get("align", {}).get("agreement", alignment_set.get("agreement"))),
        notes=tuple(_stage_notes(done)),
        cost=_cost(path / "federate" / "done.json", done["federate"]),
    )


def used_stages(config: dict[str, Any]) -> tuple[str, ...]:
    """The stages whose result this run's model depends on, in their order; the folder may hold shared others."""
    pretrain, align = (bool(config.get(stage, {}).get("enabled", True)) for stage in ("pretrain", "align"))
    wanted = {"caption": pretrain or align, "pretrain": pretrain, "federate": True, "align": align}
    return tuple(stage for stage, used in wanted.items() if used)


def read_config(path: Path) -> dict[str, Any]:
    """A resolved config as plain keys and values. Not checked against the schema: an older run may have other keys."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no run folder (config.yaml is missing); expected e.g. runs/demo") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys and values at the top; run the stage that writes it again")
    return tree


def read_evaluation(path: Path, stage: str) -> Evaluation:
    """An evaluation.json. Raises UserError when the stage is not finished or the file lacks a key."""
    if not path.exists():
        raise UserError(f"{path.parent}: no evaluation yet; run `fedscale {stage}` with the same config first")
    tree = files.read_json(path)
    try:
        return Evaluation(
            split=str(tree["split"]),
            scores={metric: _number(tree[metric]) for metric in METRICS},
            per_class=tuple(float(value) for value in tree["per_class"]),
            confusion=tuple(tuple(int(count) for count in row) for row in tree["confusion"]),
            class_names=tuple(str(name) for name in tree["class_names"]),
            train_counts=tuple(int(count) for count in tree["train_counts"]),
            groups={str(name): tuple(indices) for name, indices in tree["groups"].items()},
            ece=_number(tree.get("ece")),
            fairness=_record(Fairness, tree.get("fairness")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not an evaluation ({error!r}); delete it and run `fedscale {stage}` again") from None


def _cost(path: Path, done: dict[str, Any]) -> Cost | None:
    try:
        return _record(Cost, done.get("cost"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a round's cost ({error!r}); run `fedscale federate` again") from None


def _record(kind: type[T], tree: Any) -> T | None:
    """A record of numbers; None of an absent one. Raises KeyError, TypeError or ValueError where it lacks a number."""
    if tree is None:
        return None
    return kind(**{field.name: float(tree[field.name]) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _read_probe(path: Path) -> tuple[ProbePoint, ...]:
    rows = _optional(path, [])
    names = [field.name for field in dataclasses.fields(ProbePoint)]
    try:
        points = [ProbePoint(**{name: row[name] for name in names}) for row in rows]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a probe ({error!r}); delete it and run `fedscale pretrain` again") from None
    return tuple(sorted(points, key=lambda point: point.fraction))


def _stage_notes(done: dict[str, Any]) -> Iterator[str]:
    """What the stages themselves want said: `notes`, a partition that was repaired, a model that diverged."""
    for summary in done.values():
        yield from (str(note) for note in summary.get("notes", ()))
    federated = done["federate"]
    if federated.get("partition"):
        yield f"partition: {federated['partition']}"
    if federated.get("diverged"):
        yield f"clients that diverged and were left out of the mean: {', '.join(federated['diverged'][:5])}"


def _children(path: Path) -> Iterator[Path]:
    if (path / "federate").is_dir():
        yield path
        return
    if path.is_dir():
        for child in sorted(path.iterdir()):
            if (child / "config.yaml").is_file() and child.is_dir():
                yield child


def _why_no_run(path: Path) -> str:
    if not path.exists():
        return "no such folder"
    if not path.is_dir():
        return "a file, not a folder"
    if (path / "config.yaml").exists():
        return "nothing has been federated in it yet"
    return "no run folder (neither config.yaml with federate/ nor child runs in it)"


def _variants_of(path: Path, children: list[Path]) -> list[str]:
    for folder in (path, *children):
        if (folder / "config.yaml").exists():
            variants = read_config(folder / "config.yaml").get("variants")
            if variants:
                return list(variants)
    return []


def _distinct(runs: list[Run]) -> list[Run]:
    """Where two runs share variant and seed, the folder's name goes in front: `a/full` and `b/full`."""
    keys = [(run.variant, run.seed) for run in runs]
    if len(set(keys)) == len(keys):
        return runs
    return [dataclasses.replace(run, variant=f"{_parent_name(run)}/{run.variant}") for run in runs]


def _parent_name(run: Run) -> str:
    folder = run.path.resolve()
    return folder.parent.name if run.config.get("variant") else folder.name


def _optional(path: Path, default: Any) -> Any:
    return files.read_json(path) if path.exists() else default


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)  # NaN is the one value unequal to itself


def _percent(share: Any) -> float | None:
    if not isinstance(share, int | float):
        return None
    return 100.0 * share if 0 <= share <= 1 else float(share)
