"""Fabricated run folders that look like the real ones: long-tailed classes, rounds that converge, both evaluations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "hexagon", "heart", "crescent", "arrow")
STAGES = {"fedavg": (False, False), "pretrain": (True, False), "align": (False, True), "full": (True, True)}
CAPTION_SUMMARY = {
    "engine": "hf",
    "model": "teachers/shapes/llava",
    "shards": 2,
    "images": 80,
    "ok": 72,
    "truncated": 8,
    "empty": 0,
    "decode_error": 0,
    "class_naming_accuracy": 88.9,
}
COST = {"clients": 8.0, "bytes_down": 39.4e6, "bytes_up": 39.4e6, "flops": 5.6e13}


@dataclass
class RunBuilder:
    """Writes run folders below `root`; the same arguments give the same files."""

    root: Path
    num_classes: int = 10
    rounds: int = 12
    n_max: int = 400
    imbalance: float = 50.0

    @property
    def counts(self) -> list[int]:
        share = np.arange(self.num_classes) / (self.num_classes - 1)
        return [int(self.n_max * (1 / self.imbalance) ** s) for s in share]

    @property
    def names(self) -> list[str]:
        return list(SHAPES) if self.num_classes == 10 else [f"class {i:03d}" for i in range(self.num_classes)]

    @property
    def groups(self) -> dict[str, list[int]]:
        if self.num_classes == 10:
            return {"many": [0, 1, 2], "medium": [3, 4, 5, 6], "few": [7, 8, 9]}
        by_count = {"many": lambda n: n > 100, "medium": lambda n: 20 <= n <= 100, "few": lambda n: n < 20}
        return {name: [i for i, n in enumerate(self.counts) if holds(n)] for name, holds in by_count.items()}

    def evaluation(self, lift: float, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng([seed, int(1000 * lift)])
        depth = np.linspace(0, 1, self.num_classes)
        accuracy = np.clip(0.88 - (0.82 - 0.75 * lift) * depth + rng.normal(0, 0.05, self.num_classes), 0.0, 0.99)
        per_class = 100
        confusion = np.zeros((self.num_classes, self.num_classes), int)
        for i, a in enumerate(accuracy):
            pull = np.exp(-3 * depth) + rng.random(self.num_classes) * 0.3
            pull[(i + 3) % self.num_classes] += 1.0
            pull[i] = 0
            confusion[i] = rng.multinomial(per_class - round(per_class * a), pull / pull.sum())
            confusion[i, i] = round(per_class * a)
        scores = confusion.diagonal() / per_class * 100
        return {
            "split": "test",
            "all": float(scores.mean()),
            **{name: float(scores[ids].mean()) if ids else None for name, ids in self.groups.items()},
            "per_class": scores.tolist(),
            "confusion": confusion.tolist(),
            "class_names": self.names,
            "train_counts": self.counts,
            "groups": self.groups,
            "balanced_accuracy": float(scores.mean()),
            "balanced_error": float(100 - scores.mean()),
            "ece": 14.0 - 8 * lift,
            "fairness": {
                "clients": 20,
                "mean": float(scores.mean()) + 6.0,
                "variance": 160.0 - 90 * lift,
                "worst_decile": float(scores.mean()) - 20.0,
            },
        }

    def run(self, variant: str = "", seed: int = 7, parent: str = "demo", probe: bool = True, **config: Any) -> Path:
        """One finished run folder; `config` is laid over the fabricated config's top level."""
        pretrain, align = STAGES.get(variant, (True, True))
        path = self.root / parent / (f"{variant}-s{seed}" if variant else "")
        lift = 0.0 + 0.3 * pretrain
        federated, aligned = self.evaluation(lift, seed), self.evaluation(lift + 0.45, seed)
        seconds = {"caption": 21.0, "pretrain": 38.0, "federate": 64.0, "align": 9.0}
        offline = {"clip": {"model": "teachers/shapes/clip"}, "mllm": {"model": "teachers/shapes/llava"}}
        tree = {
            "name": parent,
            "seed": seed,
            "seeds": [7, 8],
            "variant": variant,
            "data": {
                "name": "shapes",
                "format": "shapes",
                "imbalance_factor": self.imbalance,
                "open_pool": {"reserve": 40},
                "partition": {"kind": "dirichlet_equal", "clients": 20, "alpha": 0.5},
            },
            "model": {"name": "resnet8", "width": 16},
            "teachers": {**offline, "offline": {"enabled": False}},
            "caption": {"engine": "hf", "dir": None},
            "pretrain": {"enabled": pretrain, "epochs": 5},
            "federate": {
                "method": "fedavg",
                "rounds": self.rounds,
                "clients_per_round": 8,
                "local_epochs": 2,
                "lr": 0.1,
            },
            "align": {"enabled": align, "teacher": "clip", "images_per_class": 50},
            "eval": {"split": "test"},
            **config,
        }
        write(path / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
        versions = {"mllm-fedscale": "0.1.0", "torch": "2.15.0", "transformers": "5.23.0", "deepspeed": "not installed"}
        environment = {"command": ["fedscale", "run"], "python": "3.11.9", "platform": "Linux-6.1", "cpus": 2}
        dump(path / "environment.json", {**environment, "device": "cpu", "seed": seed, "versions": versions})
        self._federate(path, federated, lift, seed)
        for stage in ("caption", *(["pretrain"] * pretrain), "federate", *(["align"] * align)):
            summary = {"caption": CAPTION_SUMMARY, "federate": {"cost": COST}}.get(stage, {})
            dump(path / stage / "done.json", {**summary, "seconds": seconds[stage] * (1 + 0.1 * (seed % 2))})
        self.captions(path / "caption")
        if align:
            dump(path / "align" / "evaluation.json", aligned)
        if pretrain and probe:
            points = [(0.01, 12, 14.0, 31.0), (0.05, 56, 26.0, 45.0), (0.1, 112, 33.0, 52.0), (1.0, 1120, 63.0, 68.0)]
            keys = ("fraction", "images", "scratch", "pretrained")
            rows = [dict(zip(keys, (f, n, s + seed % 3, p + seed % 2), strict=True)) for f, n, s, p in points]
            dump(path / "pretrain" / "probe.json", rows)
        return path

    def _federate(self, path: Path, final: dict[str, Any], lift: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = []
        for index in range(1, self.rounds + 1):
            grown = (1 - np.exp(-(4 + 6 * lift) * index / self.rounds)) / (1 - np.exp(-(4 + 6 * lift)))
            noise = rng.normal(0, 2.0 * (1 - index / self.rounds), 4)
            scores = {
                metric: None if final[metric] is None else float(max(0.0, final[metric] * grown + n))
                for metric, n in zip(("all", "many", "medium", "few"), noise, strict=True)
            }
            rows.append(json.dumps({"round": index, **scores, "loss": 2.3 * float(1 - 0.8 * grown), "seconds": 5.2}))
        write(path / "federate" / "metrics.jsonl", "\n".join(rows) + "\n")
        dump(path / "federate" / "evaluation.json", final)

    def captions(self, folder: Path, text: str = "There is a {} in the picture.") -> None:
        """Two sidecars with their markers; one row in ten is cut off, and one in five names another class."""
        for shard in range(2):
            rows = []
            for index in range(40):
                word = self.names[index % self.num_classes]
                said = self.names[(index + 1) % self.num_classes] if index % 5 == 4 else word
                texts = {
                    "description": [f"A large red {said} with a striped texture on a pale green background."],
                    "conversation": [text.format(said)],
                    "reasoning": [f"It has the outline of a {said}, so the main object is a {said}."],
                }
                status = "truncated" if index % 10 == 9 else "ok"
                rows.append({"key": f"{shard:02d}{index:04d}", "status": status, "texts": texts, "keyword": word})
            write(folder / f"{shard:05d}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            dump(folder / f"{shard:05d}.done.json", {"n_in": len(rows)})

    def demo(self, parent: str = "demo", seeds: tuple[int, ...] = (7, 8)) -> Path:
        """The parent folder of the four variants over two seeds."""
        for variant in STAGES:
            for seed in seeds:
                self.run(variant, seed, parent)
        return self.root / parent


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def dump(path: Path, value: Any) -> None:
    write(path, json.dumps(value))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent folder of the four variants over two seeds, for tests that only read it."""
    return RunBuilder(tmp_path_factory.mktemp("runs")).demo()


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., RunBuilder]:
    """`build(num_classes=…, rounds=…)` gives a RunBuilder below the test's own folder."""
    return lambda **shape: RunBuilder(tmp_path / "runs", **shape)
