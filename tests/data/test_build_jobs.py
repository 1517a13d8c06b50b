"""Shards built by several processes: the same result as by one, and a clean end whatever happens to them."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedscale.config import RecipeConfig
from fedscale.config.schema import OpenPoolConfig, ShapesConfig
from fedscale.data.build import build_shards
from fedscale.data.shards import read_shard
from fedscale.data.workers import FEW, cores, processes, threads_each
from fedscale.errors import UserError
from fedscale.progress import SilentReporter

from .conftest import NAMES, picture, write_parquet

POOL = OpenPoolConfig(reserve=4, validation=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _parquet(root: Path) -> RecipeConfig:
    write_parquet(root / "train-0.parquet", [0, 1, 2] * 20, broken=(4, 30, 59), names=NAMES)
    write_parquet(root / "test-0.parquet", [0, 1, 2] * 4, broken=(7,), names=NAMES)
    return RecipeConfig(format="parquet", imbalance_factor=4)


def _folder(root: Path) -> RecipeConfig:
    for split, count in (("train", 20), ("test", 4)):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                form = ("JPEG", "PNG", "BMP")[number % 3]
                path = root / split / name / f"{name}.no.{number:02d}.{form.lower()}"
                path.write_bytes(picture(100 * label + number, form=form))
            (root / split / name / "99.jpg").write_bytes(b"no image")
    return RecipeConfig(format="folder", imbalance_factor=4)


def _cifar(root: Path) -> RecipeConfig:
    pixels = np.random.default_rng(1).integers(0, 256, (60, 3072), dtype=np.uint8)
    root.mkdir()
    for file in ("train", "test"):
        labels = [i % 3 for i in range(60)]
        (root / file).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}))
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": list(NAMES)}))
    return RecipeConfig(format="cifar-python", imbalance_factor=4)


def _shapes(root: Path) -> RecipeConfig:
    return RecipeConfig(format="shapes", shapes=ShapesConfig(8, 2))


@pytest.mark.parametrize("originals", [_parquet, _folder, _cifar, _shapes])
def test_any_number_of_processes_gives_the_same_folder(
    originals: Callable[[Path], RecipeConfig], tmp_path: Path
) -> None:
    recipe = replace(originals(tmp_path / "source"), name="x", samples_per_shard=7, max_corrupt=0.2, open_pool=POOL)
    recipe = recipe if recipe.format == "shapes" else replace(recipe, source=str(tmp_path / "source"))
    built = {jobs: build_shards(recipe, tmp_path / f"by {jobs}", SilentReporter(), jobs) for jobs in (1, 2, 3)}
    assert contents(tmp_path / "by 2") == contents(tmp_path / "by 1")
    assert contents(tmp_path / "by 3") == contents(tmp_path / "by 1")
    assert len(built[1].excluded) == {"parquet": 4, "folder": 6}.get(recipe.format, 0)
    assert all(len(built[1].splits[split]) > 1 for split in ("train", "pool", "test"))
    assert {path.name for path in tmp_path.iterdir()} - {"source"} == {"by 1", "by 2", "by 3"}


def test_names_with_dots_give_keys_that_are_numbers(tmp_path: Path) -> None:
    recipe = replace(_folder(tmp_path / "source"), source=str(tmp_path / "source"), max_corrupt=0.2, open_pool=POOL)
    manifest = build_shards(recipe, tmp_path / "shards", SilentReporter())
    samples = [s for shard in manifest.shards("train") for s in read_shard(manifest.path(shard))]
    assert any("ant.no.03" in str(sample.source) for sample in samples)
    assert all(sample.key.isdigit() and len(sample.key) == 8 for sample in samples)


def test_the_limit_of_corrupt_images_is_one_for_all_processes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "source" / "train-0.parquet", [0, 1, 2] * 20, broken=(0, 10, 20, 30, 40), names=NAMES)
    recipe = RecipeConfig(
        name="x",
        format="parquet",
        source=str(tmp_path / "source"),
        samples_per_shard=6,  # so that hardly a shard has two of the five
        open_pool=OpenPoolConfig(enabled=False),
    )
    with pytest.raises(UserError, match=r"more than 3 images cannot be decoded, the limit of max_corrupt=0.06"):
        build_shards(replace(recipe, max_corrupt=0.06), tmp_path / "shards", SilentReporter(), jobs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    manifest = build_shards(replace(recipe, max_corrupt=0.09), tmp_path / "shards", SilentReporter(), jobs=2)
    assert len(manifest.excluded) == 5


def test_a_source_that_breaks_in_a_worker_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = replace(_folder(tmp_path / "source"), source=str(tmp_path / "source"), max_corrupt=0.2, open_pool=POOL)
    gone = tmp_path / "source" / "train" / "ant" / "ant.no.03.jpeg"
    gone.unlink()
    gone.symlink_to("nowhere.jpg")  # listed by the scan, missing when it is read
    with pytest.raises(UserError, match=r"ant\.no\.03\.jpeg: cannot be read \(No such file"):
        build_shards(replace(recipe, samples_per_shard=5), tmp_path / "shards", SilentReporter(), jobs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_small_build_and_one_of_several_ranks_work_in_their_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes(None, 10_000, FEW + 1) == cores() >= 1
    assert processes(None, 10_000, FEW) == 1
    assert processes(5, 3, 1) == 3
    assert [threads_each(jobs) for jobs in (1, 10_000)] == [None, 1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes(None, 10_000, FEW + 1) == 1


SCRIPT = """
import sys
from pathlib import Path
from fedscale.config import RecipeConfig
from fedscale.config.schema import OpenPoolConfig, ShapesConfig
from fedscale.data.build import build_shards
from fedscale.errors import Stopped, UserError
from fedscale.progress import SilentReporter

recipe = RecipeConfig(name="x", samples_per_shard=40, shapes=ShapesConfig(3000, 1), open_pool=OpenPoolConfig(False))
try:
    build_shards(recipe, Path(sys.argv[1]) / "shards", SilentReporter(), int(sys.argv[2]))
except (Stopped, UserError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, "it takes more than five minutes"
        time.sleep(0.01)


def _workers(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def half_built(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A build of half a minute below `tmp_path` in a process group of its own, which has written its second shard."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(request.param)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As in a terminal, though the tests may be a background job, which ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    _wait_until(lambda: len(list(tmp_path.glob("*/train/0*.tar"))) >= 2)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("half_built", [1, 2], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_build_and_leaves_nothing(
    half_built: subprocess.Popen[str], number: signal.Signals, tmp_path: Path
) -> None:
    workers = _workers(half_built)
    if number == signal.SIGINT:
        os.killpg(half_built.pid, number)  # as a terminal's Ctrl-C does
    else:
        half_built.send_signal(number)
    _, errors = half_built.communicate(timeout=300)
    assert errors == f"Stopped: building x: stopped by {number.name}, nothing is left of it\n"
    assert list(tmp_path.iterdir()) == []
    assert not any(map(_runs, workers))


@pytest.mark.parametrize("half_built", [2], indirect=True)
def test_a_killed_worker_ends_the_build_and_leaves_nothing(half_built: subprocess.Popen[str], tmp_path: Path) -> None:
    workers = _workers(half_built)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, errors = half_built.communicate(timeout=300)
    assert errors.startswith("UserError: jobs=2: a worker process was killed")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert not any(map(_runs, workers))


@pytest.mark.parametrize("half_built", [2], indirect=True)
def test_workers_end_with_a_killed_parent(half_built: subprocess.Popen[str], tmp_path: Path) -> None:
    workers = _workers(half_built)
    assert len(workers) == 2
    half_built.kill()
    half_built.wait()
    _wait_until(lambda: not any(map(_runs, workers)))
    assert not (tmp_path / "shards").exists()
