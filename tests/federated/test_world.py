"""The number of ranks, the launcher, and where a run was killed leave no trace in exact mode: not one bit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.federated.engine_support import make_engine, settings, trained
from tests.federated.test_metrics import metrics_rows, tensorboard_rows
from tests.launching import LAUNCHERS, REPOSITORY
from tests.ranks import ranks

pytestmark = pytest.mark.slow

EXACT = {"backend": "batched", "lanes": 2, "aggregate": {"exact": True}}
RANK = """
import json, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from fedscale.distributed.mesh import open_mesh
from tests.federated.engine_support import make_engine, settings, trained

method, options, folder = sys.argv[1:]
torch.set_num_threads(1)
with open_mesh(torch.device("cpu"), 1, 60, print) as mesh:
    engine = make_engine(settings(method=method, **json.loads(options)), "resnet8", mesh, Path(folder) / "federate")
    whole = trained(engine)
    if mesh.is_main:
        save_file({"vector": whole}, Path(folder) / "vector.safetensors")
"""
RUN = [
    "federate", "configs/demo.yaml", "variant=fedavg", "seeds=[1]", "threads=1", "federate.method=scaffold",
    "federate.rounds=8", "federate.local_epochs=1", "federate.backend=batched", "federate.lanes=2",
    "federate.aggregate.exact=true", "eval.every=4",
]  # fmt: skip


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedyogi"])
def test_two_and_four_ranks_give_the_bits_of_one(method: str, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    alone = trained(make_engine(settings(method=method, **EXACT), folder=tmp_path / "alone"))
    for count in (2, 4):
        folder = tmp_path / str(count)
        folder.mkdir()
        done = ranks(count, script, method, json.dumps(EXACT), str(folder))
        assert done.returncode == 0, done.stderr[-5000:]
        assert load_file(folder / "vector.safetensors")["vector"].equal(alone), f"{count} ranks"


def test_without_exact_sums_two_ranks_agree_closely(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    done = ranks(2, script, "fedavg", '{"backend": "batched", "lanes": 2}', str(tmp_path))
    assert done.returncode == 0, done.stderr[-5000:]
    alone = trained(make_engine(settings(backend="batched", lanes=2)))
    assert (load_file(tmp_path / "vector.safetensors")["vector"] - alone).abs().max() < 1e-9


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process federated from beginning to end."""
    folder = tmp_path_factory.mktemp("world")
    words = [sys.executable, "-m", "fedscale", *RUN, "federate.tensorboard=true"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def model(folder: Path, out: str = "runs") -> bytes:
    return (stage(folder, out) / "model.safetensors").read_bytes()


def stage(folder: Path, out: str) -> Path:
    return folder / out / "demo" / "fedavg-s1" / "federate"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_gives_the_bytes_of_one_process(launcher: str, undisturbed: Path) -> None:
    words = [*LAUNCHERS[launcher], *RUN, f"out={launcher}"]
    done = subprocess.run([sys.executable, *words], cwd=undisturbed, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert model(undisturbed, launcher) == model(undisturbed)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_the_deepspeed_launcher_gives_the_bytes_of_one_process(undisturbed: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", port, "--module"]
    words = [sys.executable, *launcher, "fedscale", *RUN, "out=deepspeed"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(words, cwd=undisturbed, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert model(undisturbed, "deepspeed") == model(undisturbed)


def test_tensorboard_has_the_rows_of_a_whole_run(undisturbed: Path) -> None:
    folder = stage(undisturbed, "runs")
    assert len(metrics_rows(folder)) == 8
    assert tensorboard_rows(folder) == metrics_rows(folder)


def test_ranks_started_by_slurm_give_the_bytes_of_one_process(undisturbed: Path) -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    ranks = []
    for number in ("0", "1"):
        environment = {**os.environ, **step, "SLURM_PROCID": number, "SLURM_LOCALID": number}
        words = [sys.executable, "-m", "fedscale", *RUN, "out=slurm"]
        ranks.append(subprocess.Popen(words, cwd=undisturbed, stderr=subprocess.PIPE, text=True, env=environment))
    for rank in ranks:
        _, said = rank.communicate(timeout=300)
        assert rank.returncode == 0, said[-3000:]
    assert model(undisturbed, "slurm") == model(undisturbed)


def test_killed_with_two_ranks_and_resumed_with_one_it_ends_with_the_same_bytes(undisturbed: Path) -> None:
    process = start(undisturbed, "killed")
    wait_for(stage(undisturbed, "killed") / "round_3" / "COMPLETE", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    words = [sys.executable, "-m", "fedscale", *RUN, "out=killed"]
    done = subprocess.run(words, cwd=undisturbed, capture_output=True, text=True)
    assert done.returncode == 0 and "resuming after round" in done.stderr, done.stderr
    assert model(undisturbed, "killed") == model(undisturbed)


def test_stopped_by_sigterm_with_two_ranks_it_is_saved_and_ends_with_75(undisturbed: Path) -> None:
    process = start(undisturbed, "stopped")
    wait_for(stage(undisturbed, "stopped") / "round_2" / "COMPLETE", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:  # the ranks themselves, as srun does it; torchrun would hide their exit codes
        os.kill(int(child), signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert "the same command resumes it" in said and "exitcode  : 75" in said, said[-3000:]
    words = [sys.executable, *LAUNCHERS["torchrun"], *RUN, "out=stopped"]
    done = subprocess.run(words, cwd=undisturbed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert model(undisturbed, "stopped") == model(undisturbed)


def start(folder: Path, out: str) -> subprocess.Popen[str]:
    words = [sys.executable, *LAUNCHERS["torchrun"], *RUN, f"out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        words, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until the file is there. The process must not end before."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        with pytest.raises(subprocess.TimeoutExpired):  # it is still running
            process.wait(0.05)
