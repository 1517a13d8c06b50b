"""The stages of a run: which it needs, what each depends on, and how one is carried out exactly once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.config import Config, overlaid
from fedscale.config.methods import needs_clip
from fedscale.distributed.launch import this_place, this_worker
from fedscale.errors import UserError
from fedscale.progress import LabelledReporter
from fedscale.runs import RunFolder, StageFolder, stage_inputs
from fedscale.session import Session

MODULES = {
    "caption": "fedscale.server.caption",
    "pretrain": "fedscale.server.pretrain",
    "federate": "fedscale.federated.rounds",
    "align": "fedscale.server.align",
}
WITH_TEACHERS = ("caption", "pretrain", "align")

Runner = Callable[..., dict[str, Any] | None]  # (config, run folder, session, **options)


def children(config: Config) -> list[Config]:
    """The runs that a config stands for: every variant (or the one that `variant=` names) with every seed.

    Raises UserError for a `variant` that the config does not have.
    """
    if not config.variants and not config.seeds:
        return [config]
    variants = config.variants or {config.variant or config.federate.method: {}}
    if config.variant:
        if config.variant not in variants:
            raise UserError(f"variant={config.variant}: expected one of {', '.join(variants)}")
        variants = {config.variant: variants[config.variant]}
    runs = []
    for name, overlay in variants.items():
        variant = overlaid(config, overlay or {}, f"variants.{name}")
        for seed in config.seeds or (config.seed,):
            runs.append(dataclasses.replace(variant, variant=name, seed=seed, variants={}, seeds=()))
    return runs


def needed(config: Config) -> list[str]:
    """The stages of one run, in order (the report, which belongs to the whole experiment, aside)."""
    stages = ["caption"] if config.pretrain.enabled or config.align.enabled else []
    stages += ["pretrain"] if config.pretrain.enabled else []
    stages.append("federate")
    return stages + (["align"] if config.align.enabled else [])


def prerequisites(config: Config, stage: str) -> list[str]:
    """The stages whose results `stage` reads."""
    wanted = {
        "caption": [],
        "pretrain": ["caption"],
        "federate": ["caption", "pretrain"] if config.align.between_rounds else ["pretrain"],
        "align": ["caption", "federate"],
    }[stage]
    return [name for name in wanted if name in needed(config)]


def stage_folder(config: Config, stage: str) -> StageFolder:
    """The stage's folder. In a child run it is a link into `shared/`, so that equal inputs are worked on once."""
    folder = StageFolder(RunFolder.of(config).stage(stage), stage_inputs(config, stage))
    if _is_shared(config, stage):
        _link(folder.path, result_folder(config, stage).path)
    return folder


def result_folder(config: Config, stage: str) -> StageFolder:
    """Where the stage's result lies, whether there is any or not: the folder itself, or what its link leads to."""
    inputs = stage_inputs(config, stage)
    if not _is_shared(config, stage):
        return StageFolder(RunFolder.of(config).stage(stage), inputs)
    shared = Path(config.out) / config.name / "shared"
    return StageFolder(shared / f"{stage}-{files.fingerprint(inputs)}", inputs)


def _is_shared(config: Config, stage: str) -> bool:
    return bool(config.variant) and stage != "align"


def run_stage(
    config: Config, stage: str, session: Session, again: bool = False, wait: bool | None = None, **options: Any
) -> None:
    """Carry out one stage, or say that it is complete. Raises UserError and Stopped like the stage itself.

    `again` has a complete stage look at its results once more (captions may lie elsewhere, and be taken away);
    `options` are the stage's own (caption: `retry_failed`). Captioning is shared by processes, and completed by the
    last of them; another stage is one job's, and `wait` says whether to wait for a job that has it already. None: where
    it works for another run, which shares the folder; else that is a UserError.
    """
    folder = stage_folder(config, stage)
    if config.variant:
        label = f"{config.variant}, seed {config.seed}"
        session = dataclasses.replace(session, reporter=LabelledReporter(session.reporter, label))
    before = folder.summary() if folder.complete else None
    if before and not again:
        session.reporter.say(f"{stage}: complete, nothing to do")
        return
    if stage == "caption":
        folder.open(overwrite=config.caption.overwrite)
        _carry_out(config, stage, session, folder, before, options)
        return
    from fedscale.distributed.alone import alone  # torch, only once there is work to do

    run = RunFolder.of(config)
    if wait is None and not _is_shared(config, stage):
        wait = False
    with alone(folder, stage, session, run.identity, wait, getattr(config, stage).timeout) as entered:
        if entered is None:
            session.reporter.say(f"{stage}: complete by now, nothing to do")
            return
        _carry_out(config, stage, entered, folder, None, options)


def _carry_out(
    config: Config,
    stage: str,
    session: Session,
    folder: StageFolder,
    before: dict[str, Any] | None,
    options: dict[str, Any],
) -> None:
    from fedscale.device import use_threads

    use_threads(config)
    began = time.perf_counter()
    runner: Runner = import_module(MODULES[stage]).run
    try:
        located, run = _with_teachers(config, stage, session), RunFolder.of(config)
        summary = runner(located, run, session, **handed(located, run, stage), **options)
    except BaseException:
        if stage != "caption" and this_place().rank == 0:  # captioning adds up its shards' seconds itself
            with contextlib.suppress(UserError, OSError):  # what ended the stage may be the disk
                folder.interrupted(time.perf_counter() - began)
        raise
    seconds = time.perf_counter() - began
    if summary is None:
        return
    if before and before == before | _as_saved(summary):
        session.reporter.say(f"{stage}: complete, nothing to do")
        return
    before_it, stopped = folder.spent
    whole = round(before_it + seconds, 3)
    folder.close(**{**summary, "seconds": whole, "launches": stopped + 1, "ranks": _ranks(stage)})
    session.reporter.say(f"{stage}: done in {seconds:.1f} s" + (f", {whole:.1f} s in all" if stopped else ""))


def _ranks(stage: str) -> int:
    """How many ranks, or workers of captioning, did it: what `fedscale plan --fit` needs to know of the seconds."""
    return this_worker().world if stage == "caption" else this_place().world


def handed(config: Config, run: RunFolder, stage: str) -> dict[str, Any]:
    """What a stage is given of another's, since no stage imports another."""
    if stage == "federate" and config.align.between_rounds:
        from fedscale.server.align.between import BetweenRounds

        return {"after_round": BetweenRounds(config, run)}
    return {}


def _as_saved(summary: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(summary))


def _with_teachers(config: Config, stage: str, session: Session) -> Config:
    """The config with its teachers replaced by those trained offline, where it asks for that."""
    for_clients = config.align.between_rounds or needs_clip(config.federate.method)
    wanted = stage in WITH_TEACHERS or (stage == "federate" and for_clients)
    if not wanted or not config.teachers.offline.enabled:
        return config
    from fedscale.teachers.offline import ensure_offline_teachers

    return ensure_offline_teachers(config, Path(config.out) / config.name, session)


def with_located_teachers(config: Config) -> Config:
    """The config with its teachers where `run_stage` would put those trained offline; none is trained."""
    if not config.teachers.offline.enabled:
        return config
    from fedscale.teachers.offline import located_offline_teachers

    return located_offline_teachers(config, Path(config.out) / config.name)


def _link(path: Path, target: Path) -> None:
    try:
        files.make_folder(target)
        files.make_folder(path.parent)
        relative = os.path.relpath(target, path.parent)
        if path.is_symlink() and os.readlink(path) == relative:
            return
        temporary = path.with_name(f".{path.name}.tmp.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(relative)
        os.replace(temporary, path)
    except OSError as error:
        raise files.unwritable(path, error) from error
