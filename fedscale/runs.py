"""Run folders and stage folders: where results lie, what they were made from, and whether they are complete.

A stage folder starts with `inputs.json` (everything that determines its result), and ends with `done.json`, written
last. A second run with the same inputs resumes or finds it complete; other inputs are refused by naming the keys.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.config import Config, to_dict, to_yaml
from fedscale.config.methods import needs_clip
from fedscale.differing import differing
from fedscale.errors import UserError
from fedscale.lock import FILE, LITTER, owner_of

INPUTS = "inputs.json"
SPENT = "spent.json"  # seconds of the launches that ended before the stage did; gone when it is complete
STAGES = ("caption", "pretrain", "federate", "align", "report")
RECORDED = ("torch", "torchvision", "accelerate", "transformers", "open_clip_torch", "webdataset", "deepspeed", "numpy")

# How texts are made; where they lie, who makes them and how often it is tried is no part of the result.
CAPTION_INPUTS = (
    "engine",
    "kinds",
    "prompts",
    "use_keyword",
    "max_images",
    "max_new_tokens",
    "max_pixels",
    "temperature",
    "retry_temperatures",
    "seed",
)

# How pretraining is computed, which leaves its result alone (but for low-order bits). `workers` read the same batches.
PRETRAIN_ELSEWHERE = ("enabled", "save_every", "timeout", "tensorboard", "activation_checkpointing", "workers")

# Where and how federation is computed, which leaves its result alone (but for low-order bits: `shard`).
FEDERATE_ELSEWHERE = ("shard", "store", "memory", "timeout", "checkpoint_every", "tensorboard")

# Alignments between rounds (`every`) belong to federation's result.
ALIGN_ELSEWHERE = ("enabled", "every", "timeout")

# Inputs whose change adds to a stage's result: more images captioned, embeddings stored beside them.
GROWING = ("caption.max_images", "caption.features")


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/` of one run, with a folder for each stage."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        child = f"{config.variant}-s{config.seed}" if config.variant else ""
        return cls(Path(config.out) / config.name / child)

    def stage(self, name: str) -> Path:
        return self.path / name

    @property
    def identity(self) -> str:
        """What a lock's owner calls the run that it works on."""
        return str(self.path.resolve())

    def describe(self, config: Config) -> None:
        """Save the resolved config and the environment. Raises UserError where the folder cannot be written.

        Not while another job works on the run: what made its results stands there already.
        """
        owners = [owner_of(self.stage(stage).resolve() / FILE) for stage in STAGES]
        if not any(owner is not None and owner.work == self.identity for owner in owners):
            files.write_text(self.path / "config.yaml", to_yaml(config))
            files.write_json(self.path / "environment.json", environment(config))


def environment(config: Config) -> dict[str, Any]:
    """Versions, seed, devices and command; no environment variables, so that no secret is ever saved."""
    versions = {}
    for name in ("mllm-fedscale", *RECORDED):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": config.threads,
        "device": config.device,
        "seed": config.seed,
        "versions": versions,
    }


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder: its inputs first, its marker last."""

    path: Path
    inputs: dict[str, Any]

    @property
    def lock(self) -> Path:
        """The file that is locked by the job that works here; where the folder lies, however it is linked."""
        return self.path.resolve() / FILE

    @property
    def complete(self) -> bool:
        marker = self.path / "done.json"
        return marker.exists() and files.read_json(marker).get("fingerprint") == files.fingerprint(self.inputs)

    def check(self) -> None:
        """Raises UserError, naming the keys that differ, when the folder holds a result of other inputs.

        Or is about to: a job with other inputs works on it.
        """
        self._check(under_way=owner_of(self.lock) is not None)

    def _check(self, under_way: bool) -> None:
        path = self.path / INPUTS
        if not under_way and not any(entry.name not in (INPUTS, SPENT, *LITTER) for entry in _entries(self.path)):
            return  # begun, and ended by a mistake in the config before there was any result
        lines = differing(files.read_json(path), _jsonable(self.inputs), GROWING) if path.exists() else []
        if lines:
            raise UserError(
                f"{self.path}: holds a result of another config ({'; '.join(lines[:3])}); "
                "choose another name= or out=, or delete the folder"
            )

    def open(self, overwrite: bool = False) -> None:
        """Check the folder, unless it may be overwritten, and write `inputs.json`. Raises UserError like `check`.

        A stage that one job alone works on is opened by that one, once it has the lock.
        """
        if not overwrite:
            self._check(under_way=False)
        files.write_json(self.path / INPUTS, self.inputs)

    @property
    def spent(self) -> tuple[float, int]:
        """Seconds, and number, of the launches before this one that were stopped or failed; a kill leaves no trace."""
        path = self.path / SPENT
        found = files.read_json(path) if path.exists() else {}
        return float(found.get("seconds", 0.0)), int(found.get("launches", 0))

    def interrupted(self, seconds: float) -> None:
        """Count the seconds of a launch that ends before the stage is complete."""
        before, launches = self.spent
        files.write_json(self.path / SPENT, {"seconds": round(before + seconds, 3), "launches": launches + 1})

    def close(self, **summary: Any) -> None:
        """Publish the marker `done.json`, with the stage's own summary (seconds, counts) in it."""
        files.write_json(self.path / "done.json", {"fingerprint": files.fingerprint(self.inputs), **summary})
        (self.path / SPENT).unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        """What `close` recorded. Raises UserError when the stage is not complete."""
        if not (self.path / "done.json").exists():
            raise UserError(f"{self.path}: not complete; run `fedscale {self.path.name}` with the same config first")
        return files.read_json(self.path / "done.json")


def stage_inputs(config: Config, stage: str) -> dict[str, Any]:
    """Everything that determines a stage's result, and nothing else: runs with equal inputs may share the folder."""
    whole = to_dict(config)
    data = {k: v for k, v in whole["data"].items() if k not in ("recipe", "dir", "partition", "max_corrupt")}
    if stage == "caption":
        caption = {name: whole["caption"][name] for name in CAPTION_INPUTS}
        if config.caption.engine == "openai":
            caption["openai"] = {name: whole["caption"]["openai"][name] for name in ("base_url", "model")}
        if config.caption.features.enabled:
            caption["features"] = {"views": config.caption.features.views, "clip": whole["teachers"]["clip"]}
        return {
            "data": data,
            "caption": caption,
            "mllm": whole["teachers"]["mllm"],
            "offline": whole["teachers"]["offline"],
        }
    common = {"seed": config.seed, "data": data, "model": whole["model"]}
    if stage == "pretrain":
        return {
            **common,
            "caption": stage_inputs(config, "caption"),
            "pretrain": {k: v for k, v in whole["pretrain"].items() if k not in PRETRAIN_ELSEWHERE},
            "clip": whole["teachers"]["clip"],
            **({"lm": whole["teachers"]["lm"]} if config.teachers.lm.model else {}),
        }
    if stage == "federate":
        federate = {k: v for k, v in whole["federate"].items() if k not in FEDERATE_ELSEWHERE}
        if not config.federate.rounds:  # how clients train is without effect
            federate = {name: federate[name] for name in ("method", "options", "rounds")}
        initial = stage_inputs(config, "pretrain") if config.pretrain.enabled else None
        evaluation = {k: v for k, v in whole["eval"].items() if k != "batch_size"}
        partition = whole["data"]["partition"]
        inputs = {**common, "partition": partition, "federate": federate, "eval": evaluation, "pretrain": initial}
        if config.data.partition.pool_client:
            inputs["pool_images"] = config.caption.max_images
        if needs_clip(config.federate.method):
            inputs |= {"clip": whole["teachers"]["clip"], "offline": whole["teachers"]["offline"]}
            if config.teachers.offline.enabled:
                inputs |= {"offline_seed": config.caption.seed}  # that teachers are trained by
        if config.align.between_rounds:
            inputs |= {"align_every": config.align.every, **_alignment_inputs(config)}
        return inputs
    if stage == "align":
        return {"federate": stage_inputs(config, "federate"), **_alignment_inputs(config)}
    raise ValueError(f"no such stage: {stage}")


def _alignment_inputs(config: Config) -> dict[str, Any]:
    """What determines an alignment, the model to align aside."""
    whole = to_dict(config)
    return {
        "align": {k: v for k, v in whole["align"].items() if k not in ALIGN_ELSEWHERE},
        "caption": stage_inputs(config, "caption"),
        "teachers": {name: part for name, part in whole["teachers"].items() if name != "lm"},
    }


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    return [_jsonable(v) for v in value] if isinstance(value, list | tuple) else value
