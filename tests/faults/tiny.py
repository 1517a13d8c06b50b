"""Every stage in a second or two: a tiny run, its commands in this process, and what happens in their middle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscale import cli, cli_common, cli_shards
from fedscale.config import Config, overlaid, to_yaml
from fedscale.models import language
from fedscale.progress import SilentReporter, Task
from fedscale.server.align import cache
from fedscale.server.pretrain import lessons
from tests.server.align.support import colour_teacher
from tests.server.pretrain.test_stage import FakeClip, FakeMllm, make_shards

RUN = {
    "name": "tiny",
    "device": "cpu",
    "threads": 1,
    "data": {"image_size": 8, "partition": {"clients": 3, "alpha": 5.0}},
    "model": {"width": 4},
    "caption": {"engine": "template", "flush_every": 4, "batch_size": 4},
    "pretrain": {
        "epochs": 1,
        "batch_size": 6,
        "streams": 2,
        "language_model": "frozen",
        "save_every": 2,
        "visual_tokens": 2,
        "probe": {"enabled": False},
    },
    "federate": {
        "method": "scaffold",
        "rounds": 4,
        "clients_per_round": 2,
        "local_epochs": 1,
        "batch_size": 6,
        "backend": "batched",
        "lanes": 2,
    },
    "align": {"images_per_class": 3, "epochs": 2, "batch_size": 6},
    "eval": {"groups": {"many_classes": 1, "few_classes": 1}},
}
RECIPE = [
    "shards/shapes.yaml",
    "imbalance_factor=2",
    "open_pool.reserve=4",
    "open_pool.validation=1",
    "shapes.train_per_class=8",
    "shapes.test_per_class=2",
    "samples_per_shard=20",
    "--jobs=1",
]
STAGES = ("shards", "caption", "pretrain", "federate", "align", "report")
MIDDLE = {"shards": 40, "caption": 6, "pretrain": 4, "federate": 3, "align": 2, "report": 1}  # signs of progress until
RESULTS = ("*.tar", "manifest.json", "*.jsonl", "*.safetensors", "evaluation.json", "partition.json", "report/*")
MEASURED = ("metrics.jsonl",)  # seconds are in it

Fault = Callable[[], None]


@dataclass(frozen=True)
class Said:
    """How a command ended: its exit code, its complaint on stderr, and the lines of its progress."""

    code: int
    complaint: str
    lines: list[str]


class Tiny:
    """A tiny run at `place`; its shards lie elsewhere."""

    def __init__(self, shards: Path, place: Path, scratch: Path) -> None:
        self.place, self.folder = place, place / "tiny"
        scratch.mkdir(parents=True, exist_ok=True)
        self._words = scratch / "tiny.yaml"
        self.config = overlaid(overlaid(Config(), RUN), {"out": str(place), "data": {"dir": str(shards)}})
        self._words.write_text(to_yaml(self.config))

    def command(self, stage: str, monkeypatch: pytest.MonkeyPatch, fault: Fault = lambda: None) -> Said:
        """Carry out a stage by the command line; `fault` happens in its middle."""
        words = {
            "shards": ["shards", "build", *RECIPE, f"--out={self.place / 'shards'}"],
            "report": ["report", str(self.folder)],
        }.get(stage, [stage, str(self._words)])
        reporter = _Faulty(MIDDLE[stage], fault)
        with monkeypatch.context() as patch:
            for module in (cli, cli_common, cli_shards):
                patch.setattr(module, "TerminalReporter", lambda: reporter)
            done = CliRunner().invoke(cli.app, words)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Said(done.exit_code, done.stderr, reporter.lines)

    def begin(self, stage: str, finished: Tiny) -> None:
        """Put what the stage reads in its place."""
        before = STAGES[1 : STAGES.index(stage)] if stage != "shards" else ()
        for name in (*before, "shared")[: len(before) + (stage == "report")]:
            shutil.copytree(finished.folder / name, self.folder / name)
        if stage == "report":
            for name in ("config.yaml", "environment.json"):
                shutil.copy(finished.folder / name, self.folder)

    def results(self, stage: str) -> dict[str, bytes]:
        """The bytes of what the stage leaves, by path."""
        root = self.place / "shards" if stage == "shards" else self.folder / stage
        found = (path for path in root.rglob("*") if path.is_file() and path.name not in MEASURED)
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(found)
            if any((Path(stage) / path.relative_to(root)).match(pattern) for pattern in RESULTS)
        }

    def unfinished(self) -> list[str]:
        """What was written beside its place, and is there still."""
        return [str(path) for path in self.place.rglob("*") if ".tmp" in path.name]


class _Faulty(SilentReporter):
    """Has the fault happen at the n-th sign of progress of a stage's own task."""

    def __init__(self, left: int, fault: Fault) -> None:
        super().__init__()
        self._left, self._fault = left, fault

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        own = not description.startswith(("decoding", "alignment set"))
        yield _FaultyTask(self._advanced if own else lambda: None)

    def _advanced(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._fault()


class _FaultyTask:
    def __init__(self, advanced: Callable[[], None]) -> None:
        self._advanced = advanced

    def advance(self, count: int = 1, note: str = "") -> None:
        self._advanced()


@contextmanager
def stood_in() -> Iterator[pytest.MonkeyPatch]:
    """Within the block teachers need no weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lessons, "load_clip", lambda config, device: FakeClip())
        patch.setattr(language, "load_mllm", lambda config, device, held: FakeMllm())
        patch.setattr(cache, "load_teacher", lambda config, names, device: colour_teacher)
        yield patch


def finish(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A tiny run, its shards beside it, undisturbed from beginning to end."""
    make_shards(scratch / "data")
    tiny = Tiny(scratch / "data", scratch / "runs", scratch)
    for stage in STAGES:
        done = tiny.command(stage, monkeypatch)
        assert done.code == 0, done
    return tiny
