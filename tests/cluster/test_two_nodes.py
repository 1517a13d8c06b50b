"""launch/two_nodes.sh: a node's launcher beside another node's, on one machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedscale import api

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "launch" / "two_nodes.sh"
WORDS = [
    "configs/demo.yaml", "variant=fedavg", "seeds=[1]", "threads=1", "federate.rounds=1", "federate.local_epochs=1",
    "federate.aggregate.exact=true",
]  # fmt: skip


def rehearsal(folder: Path, *words: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    return subprocess.Popen(
        [str(SCRIPT), *words], cwd=folder, env={**os.environ, "PATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def networks() -> set[str]:
    path = Path("/run/netns")
    return {entry.name for entry in path.glob("fedscale-*")} if path.is_dir() else set()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards, and the weights that one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    config = api.load_config(*WORDS, overlay={"out": str(folder), "data": {"dir": str(folder / "shards")}})
    api.stage(config, "federate")
    return folder


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "deepspeed"])
def test_two_nodes_federate_as_one_process_bit_for_bit(launcher: str, alone: Path, tmp_path: Path) -> None:
    before = networks()
    process = rehearsal(tmp_path, launcher, "federate", *WORDS, f"data.dir={alone / 'shards'}")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    weights = "demo/fedavg-s1/federate/model.safetensors"
    assert (tmp_path / "runs" / weights).read_bytes() == (alone / weights).read_bytes()
    assert networks() == before, "no network is left"


def test_a_stopped_rehearsal_leaves_nothing_behind(alone: Path, tmp_path: Path) -> None:
    before = networks()
    process = rehearsal(tmp_path, "torchrun", "federate", *WORDS, f"data.dir={alone / 'shards'}")
    assert process.stdout
    assert "two nodes: " in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143 and networks() == before


def test_an_unknown_launcher_is_one_line(tmp_path: Path) -> None:
    process = rehearsal(tmp_path, "mpirun", "federate", *WORDS)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and said.count("\n") == 1 and "torchrun|accelerate|deepspeed" in said
