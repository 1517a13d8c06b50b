"""Slurm's own commands, as the README has them: workers and ranks without a script of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedscale import files
from fedscale.config import load_config, to_yaml
from tests.cluster.slurm import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORDS = [
    "configs/demo.yaml", "variant=full", "seeds=[1]", "threads=1", "caption.engine=template", "caption.max_images=160",
    "caption.kinds=[description]", "data.samples_per_shard=100", "model.norm=group", "pretrain.epochs=1",
    "pretrain.batch_size=48", "pretrain.probe.enabled=false", "pretrain.timeout=60",
]  # fmt: skip


@pytest.fixture(scope="module")
def captioned(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with small.yaml and its captions, and what srun's two tasks said while they made them."""
    folder = tmp_path_factory.mktemp("commands")
    files.write_text(folder / "small.yaml", to_yaml(load_config([*WORDS, f"data.dir={folder / 'shards'}"])))
    started = ["srun", "--ntasks", "2", "--label", "python", "-m", "fedscale", "caption", "small.yaml"]
    return folder, carried_out(folder, started)


def carried_out(folder: Path, command: list[str], **told: str) -> str:
    """Its output. Slurm hands the environment on to the tasks."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **told}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def captions(run: Path) -> list[str]:
    keys = [json.loads(line)["key"] for path in run.glob("caption/*.jsonl") for line in path.read_text().splitlines()]
    assert (run / "caption" / "done.json").exists() and len(set(keys)) == len(keys)
    return sorted(keys)


def test_srun_starts_workers_that_share_the_captions(captioned: tuple[Path, str]) -> None:
    folder, said = captioned
    assert len(captions(folder / "runs" / "demo" / "full-s1")) >= 160
    assert {line[:2] for line in said.splitlines() if "caption" in line} == {"0:", "1:"}, said


def test_an_array_without_a_script_captions(captioned: tuple[Path, str], slurm: Slurm) -> None:
    folder, _ = captioned
    command = "python -m fedscale caption small.yaml name=array"
    job = carried_out(folder, ["sbatch", "--parsable", "--array=0-1", "--wrap", command]).strip()
    slurm.until(lambda: all(task["JobState"] == "COMPLETED" for task in slurm.tasks(job)), "both tasks", job)
    assert len(slurm.tasks(job)) == 2
    assert captions(folder / "runs" / "array" / "full-s1") == captions(folder / "runs" / "demo" / "full-s1")


def test_srun_starts_ranks_that_pretrain_under_zero(captioned: tuple[Path, str]) -> None:
    folder, _ = captioned
    words = ["pretrain", "small.yaml", "launch=launch/deepspeed/zero2.json"]
    command = ["srun", "--ntasks", "2", "python", "-m", "fedscale", *words]
    carried_out(folder, command, MASTER_ADDR="127.0.0.1")  # the nodes of these tests are no names of hosts
    stage = folder / "runs" / "demo" / "full-s1" / "pretrain"
    assert (stage / "export" / "model.safetensors").exists()
    assert list(stage.glob("step_*/**/*zero_pp_rank_1*")), "the second rank's part of the optimiser"
