"""The command itself on two ranks, under every launcher and strategy, stopped and killed: the same as one process.

A small pool of the demo, its own teachers, a group-norm student.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import free_port
from tests.ranks import ranks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
WORKER = Path(__file__).with_name("float64_worker.py")
STEPS = 10
WORDS = [
    "configs/demo.yaml", "variant=full", "seeds=[1]", "threads=1", "caption.engine=template", "caption.max_images=160",
    "caption.kinds=[description,conversation]", "model.norm=group", "pretrain.lr=0.001", "pretrain.epochs=1",
    "pretrain.batch_size=48", "pretrain.probe.enabled=false", "pretrain.timeout=20",
]  # fmt: skip
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "fedscale"]
ACCELERATE = ["accelerate", "launch", "--num_processes", "2", "--num_machines", "1", "--dynamo_backend", "no"]
DEEPSPEED = ["deepspeed", "--num_accelerators", "2"]


def started(folder: Path, name: str, launcher: list[str], *words: str) -> subprocess.Popen[str]:
    head = [str(BIN / launcher[0]), *launcher[1:]] if launcher else [sys.executable, "-m", "fedscale"]
    captions = f"caption.dir={folder / 'captions'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*head, "pretrain", *WORDS, f"name={name}", captions, *words], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def pretrained(folder: Path, name: str, launcher: list[str], *words: str) -> None:
    process = started(folder, name, launcher, *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]


def stage(folder: Path, name: str) -> Path:
    return folder / "runs" / name / "full-s1" / "pretrain"


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (stage(folder, name) / "metrics.jsonl").read_text().splitlines()]


def assert_same(folder: Path, name: str, other: str, tolerance: float = 1e-5) -> None:
    left, right = rows(folder, name), rows(folder, other)
    assert [row["step"] for row in left] == [row["step"] for row in right] == list(range(1, STEPS + 1))
    for key in ("loss", "lm", "feature", "contrastive"):
        assert [row[key] for row in left] == pytest.approx([row[key] for row in right], abs=tolerance), key
    exported = [load_file(stage(folder, run) / "export" / "model.safetensors") for run in (name, other)]
    for key, weight in exported[0].items():
        torch.testing.assert_close(exported[1][key], weight, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captions, and the run `one` of one process."""
    folder = tmp_path_factory.mktemp("pretrain")
    captions = [f"caption.dir={folder / 'captions'}"]
    words = [sys.executable, "-m", "fedscale", "caption", *WORDS, "name=captions", *captions]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    pretrained(folder, "one", [])
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
def test_accelerate_launch_trains_as_one_process(folder, strategy):
    config_file = ["--config_file", str(ROOT / "launch" / "accelerate" / f"{strategy}.yaml")]
    where = ["--main_process_port", free_port()]
    pretrained(folder, f"accelerate-{strategy}", [*ACCELERATE, *config_file, *where, "-m", "fedscale"])
    assert_same(folder, "one", f"accelerate-{strategy}")


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_the_deepspeed_launcher_trains_as_one_process(folder, strategy):
    launcher = [*DEEPSPEED, "--master_port", free_port(), "--module", "fedscale"]
    pretrained(folder, f"deepspeed-{strategy}", launcher, f"launch=launch/deepspeed/{strategy}.json")
    assert_same(folder, "one", f"deepspeed-{strategy}")


def test_two_ranks_differ_from_one_process_by_rounding_alone(folder, tmp_path):
    """In float64 three epochs with batch norm agree to 1e-9. In float32 Adam and batch norm soon make 1e-2 of 1e-7."""
    words = [*WORDS, "name=float64", f"caption.dir={folder / 'captions'}", "model.norm=batch", "pretrain.epochs=3"]
    found = []
    for name, count, launch in (("one", 1, []), ("ddp", 2, []), ("fsdp2", 2, ["launch=launch/accelerate/fsdp2.yaml"])):
        (tmp_path / name).mkdir()
        done = ranks(count, WORKER, folder, tmp_path / name, *words, *launch)
        assert done.returncode == 0, done.stderr[-3000:]
        losses = json.loads((tmp_path / name / "losses.json").read_text())
        found.append((losses, load_file(tmp_path / name / "weights.safetensors")))
    one, *others = found
    assert len(one[0]) > 2 * STEPS and one[0][-1] < one[0][0]
    assert one[1]["layer1.conv1.weight"].dtype == torch.float64
    for losses, weights in others:
        assert losses == pytest.approx(one[0], rel=0, abs=1e-9)
        for key, weight in one[1].items():
            torch.testing.assert_close(weights[key], weight, rtol=0, atol=1e-9)


def test_accumulated_backward_passes_and_loader_workers_are_one_step(folder):
    """But for the contrastive loss, which contrasts within a backward pass."""
    words = ["pretrain.contrastive_weight=0", "pretrain.accumulation=4", "pretrain.workers=1"]
    pretrained(folder, "whole-steps", [], words[0])
    pretrained(folder, "accumulated", TORCHRUN, *words)
    left, right = rows(folder, "whole-steps"), rows(folder, "accumulated")
    assert [row["loss"] for row in left] == pytest.approx([row["loss"] for row in right], abs=1e-5)


@pytest.mark.parametrize("launch", ["", "launch/accelerate/fsdp2.yaml", "launch/deepspeed/zero2.json"])
def test_stopped_by_sigterm_and_resumed_is_as_uninterrupted(folder, launch):
    name = f"stopped-{Path(launch).stem or 'ddp'}"
    words = [f"launch={launch}"] if launch else []
    process = started(folder, name, TORCHRUN, *words)
    metrics = stage(folder, name) / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    os.kill(last_rank(process), signal.SIGTERM)  # one rank alone is told
    said, _ = process.communicate(timeout=120)
    assert "pretrain: stopped after step" in said and "exitcode:75" in said.replace(" ", ""), said[-3000:]
    pretrained(folder, name, TORCHRUN, *words)
    assert_same(folder, "one", name)


def test_a_killed_rank_is_named_by_the_other_and_the_run_goes_on_from_its_checkpoint(folder):
    process = started(folder, "killed", TORCHRUN, "pretrain.save_every=2")
    saved = stage(folder, "killed") / "step_4" / "COMPLETE"
    wait_until(saved.exists)
    os.kill(last_rank(process), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "error: pretrain: rank 1 (host" in said and "was lost" in said, said[-3000:]
    pretrained(folder, "killed", TORCHRUN, "pretrain.save_every=2")
    assert_same(folder, "one", "killed")


def test_a_cut_shard_is_one_clear_line_on_every_rank_that_reads_it_and_none_hangs(folder):
    """And it is the only shard there: two ranks read parts of it."""
    (whole,) = (folder / "shards").glob("shapes-*")
    cut = folder / "cut"
    shutil.copytree(whole, cut)
    shard = cut / "pool" / "00000.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    process = started(folder, "cut-run", TORCHRUN, f"data.dir={cut}")
    said, _ = process.communicate(timeout=120)
    assert f"error: {shard}: not a whole shard" in said and "exitcode:2" in said.replace(" ", ""), said[-3000:]


def last_rank(launcher: subprocess.Popen[str]) -> int:
    """The process id of the last rank that a launcher started."""
    return int(Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()[-1])


def wait_until(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
