"""Ranks sum what one process would, on any mesh; and when one is lost, the others end soon and name it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from fedscale.distributed import meet
from fedscale.distributed.links import backend_for
from fedscale.distributed.mesh import Mesh, RankLost, open_mesh, rows_of
from fedscale.errors import UserError
from tests.launching import free_port, torchrun

ROOT = Path(__file__).parents[2]
TIMEOUT = 3.0  # seconds that a rank waits for the others in these tests
CPU = torch.device("cpu")

SUMS = """
import sys, torch, torch.distributed as dist
from fedscale.distributed.mesh import open_mesh

torch.set_num_threads(1)
PART = {torch.float32: 0.25, torch.float64: 2.0**-40, torch.int64: 2**53 + 1}
said = []
for shard in (1, 2):  # one mesh after the other in the same processes
    with open_mesh(torch.device("cpu"), shard, 60, said.append) as mesh:
        assert (mesh.world, mesh.clients, mesh.shard, mesh.local_rank, mesh.local_world) == (
            4, 4 // shard, shard, mesh.rank, 4)
        assert mesh.client_index * shard + mesh.shard_index == mesh.rank
        column = range(mesh.shard_index, 4, shard)  # the ranks that hold this slice
        for dtype, part in PART.items():
            for n in (1, 7, 8):
                mine = torch.arange(n).to(dtype) * (mesh.rank + 1) + part
                expected = sum(torch.arange(n).to(dtype) * (rank + 1) + part for rank in column)
                total = mine.clone()
                assert mesh.sum_over_clients(total) is total and torch.equal(total, expected), (dtype, n)
                rows = mesh.reduce_scatter_over_clients(mine)
                assert rows.shape == (-(-n // mesh.clients),) and rows.dtype == dtype
                assert torch.equal(mesh.gather_over_clients(rows, n), expected), (dtype, n)
        assert mesh.gather_objects({"rank": mesh.rank}) == [{"rank": rank} for rank in range(4)]
        assert mesh.broadcast_object(f"from {mesh.rank}") == "from 0"
        assert mesh.any(mesh.rank == 3) and not mesh.any(False)
        mesh.barrier("round 1")
        if shard == 2:
            axis = mesh.device_mesh["shard"]
            total = torch.tensor(mesh.rank)
            dist.all_reduce(total, group=axis.get_group())
            assert int(total) == 4 * mesh.client_index + 1, "the shard axis is the neighbours"
            assert mesh.device_mesh.mesh_dim_names == ("clients", "shard")
    assert not dist.is_initialized()
assert said == []
sys.stdout.write(f"fine {mesh.rank}\\n")  # one write: the ranks share the pipe
"""

FOUND = """
import sys, torch, torch.distributed as dist
from fedscale.distributed.mesh import open_mesh

torch.set_num_threads(1)
dist.init_process_group("gloo")
for _ in range(2):
    with open_mesh(torch.device("cpu"), 1, 60, print) as mesh:
        assert mesh.sum_over_clients(torch.tensor([mesh.rank + 1.0])).item() == 3
assert dist.is_initialized(), "it is not ours to close"
dist.barrier()
dist.destroy_process_group()
sys.stdout.write(f"fine {mesh.rank}\\n")  # one write: the ranks share the pipe
"""

FATES = f"""
import os, signal, sys, threading, time
import torch
from fedscale.distributed.mesh import RankLost, open_mesh

torch.set_num_threads(1)
fate, victim = sys.argv[1], int(sys.argv[2])
try:
    with open_mesh(torch.device("cpu"), 1, {TIMEOUT}, print) as mesh:
        mesh.barrier("round 11")
        since = time.monotonic()
        if mesh.rank == victim:
            if fate == "killed": os.kill(os.getpid(), signal.SIGKILL)
            if fate == "frozen": os.kill(os.getpid(), signal.SIGSTOP)
            if fate == "raised": raise ValueError("no such tensor")
            if fate == "late": threading.Event().wait({TIMEOUT} + 4)
        if fate == "in step":  # it does not come to the second of the step's collectives; another one comes slowly
            with mesh.watched("step 12"):
                torch.distributed.all_reduce(torch.ones(9))
                threading.Event().wait({TIMEOUT} + 9 if mesh.rank == victim else mesh.rank)
                torch.distributed.all_reduce(torch.ones(9))
        if fate == "killed":
            mesh.sum_over_clients(torch.ones(9))
        mesh.barrier("round 12")
except RankLost as error:
    print(f"{{time.monotonic() - since:.1f}} s, {{error}}", flush=True)
    os._exit(7)  # as the command line does: torch may abort while it tears down groups with a dead rank
"""


def start(script: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def said_by(folder: Path, program: str, ranks: int) -> str:
    (folder / "ranks.py").write_text(program)
    done = torchrun(ranks, folder / "ranks.py")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_alone_every_method_changes_nothing_and_there_is_no_process_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    with open_mesh(CPU, 1, TIMEOUT, pytest.fail) as mesh:
        assert not dist.is_initialized()
        assert mesh.is_main and (mesh.world, mesh.clients, mesh.client_index, mesh.shard_index) == (1, 1, 0, 0)
        vector = torch.arange(5.0)
        assert mesh.sum_over_clients(vector) is vector
        assert torch.equal(mesh.gather_over_clients(mesh.reduce_scatter_over_clients(vector), 5), torch.arange(5.0))
        assert mesh.gather_objects("a") == ["a"] and mesh.broadcast_object("a") == "a"
        assert mesh.any(True) and not mesh.any(False)
        mesh.barrier("round 1")


def test_a_shard_that_does_not_divide_the_world_is_refused_before_anything_starts(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match=r"federate\.shard=2: 3 ranks .* launch a multiple of 2"),
        open_mesh(CPU, 2, TIMEOUT, print),
    ):
        pass


@pytest.mark.parametrize(
    ("rank", "lost"), [("0", "rank 1 did not come to the start .* 1 of 2"), ("1", "rank 0 does not answer at 127")]
)
def test_a_rank_that_never_starts_is_named(rank, lost, monkeypatch):
    monkeypatch.setattr(meet, "START", 1.0)
    launch = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankLost, match=lost), open_mesh(CPU, 1, 1.0, print):
        pass
    assert not dist.is_initialized()


def test_nccl_is_for_ranks_with_a_gpu_each():
    assert backend_for(["cuda-a", "cuda-b"]) == (True, "")
    assert backend_for(["cuda-a", "cuda-a", "cuda-b"]) == (
        False, "3 ranks share 2 GPUs: collectives run through gloo",
    )  # fmt: skip
    assert backend_for(["cpu", "cpu"]) == (False, "")
    with pytest.raises(UserError, match="rank 1 sees no GPU"):
        backend_for(["cuda-a", "cpu"])


def test_a_sum_takes_place_on_the_device_under_nccl_and_on_the_cpu_under_gloo():
    numbers, device = torch.ones(3), torch.device("meta")  # meta in the place of a GPU
    for nccl, where in ((True, "meta"), (False, "cpu")):
        mesh = Mesh(world=2, device=device, _links=SimpleNamespace(nccl=nccl))
        assert mesh._carried(numbers).device.type == where  # evaluation's counts, norms: NCCL takes none of the CPU's


@pytest.mark.parametrize(("total", "parts"), [(0, 2), (1, 4), (7, 2), (7, 4), (8, 4), (9, 4)])
def test_parts_cover_every_row_once(total, parts):
    rows = [row for index in range(parts) for row in range(total)[rows_of(total, index, parts)]]
    assert rows == list(range(total))


@pytest.mark.slow
def test_four_ranks_sum_over_the_clients_axis_alone(tmp_path):
    assert sorted(said_by(tmp_path, SUMS, 4).split("\n"))[-4:] == [f"fine {rank}" for rank in range(4)]


@pytest.mark.slow
def test_a_process_group_that_exists_is_used_and_kept(tmp_path):
    assert "fine 0" in said_by(tmp_path, FOUND, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "victim", "says"),
    [
        ("killed", 1, "rank 1 (host {}) was lost at the sum over clients after 'round 11': no sign of life"),
        ("killed", 0, "rank 0 (host {}) was lost at the sum over clients after 'round 11': neither it nor the store"),
        ("frozen", 1, "rank 1 (host {}) was lost at 'round 12': no sign of life"),
        ("frozen", 0, "rank 0 (host {}) was lost at 'round 12': neither it nor the store"),
        ("raised", 1, "rank 1 (host {}) ended with ValueError: no such tensor"),
        ("late", 1, "rank 1 (host {}) did not arrive at 'round 12' within 3 s; it lives, last at 'round 11'"),
        (
            "in step",
            1,
            "rank 1 (host {}) did not come through 'step 12' within 3 s; it lives, in the middle of 'step 12'",
        ),
    ],
    ids=lambda value: str(value).split(" ")[0],
)
def test_the_others_end_soon_and_name_the_lost_rank(fate, victim, says, tmp_path):
    (tmp_path / "ranks.py").write_text(FATES)
    meeting = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [start(tmp_path / "ranks.py", {"RANK": str(r), **meeting}, fate, str(victim)) for r in range(3)]
    try:
        for rank in (r for r in range(3) if r != victim):
            out, err = ranks[rank].communicate(timeout=200)
            assert ranks[rank].returncode == 7, err[-3000:]
            assert says.format(socket.gethostname()) in out
            assert float(out.split()[0]) < TIMEOUT + 10, "within about the timeout"
        assert fate != "frozen" or ranks[victim].poll() is None
    finally:
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
            rank.communicate()


@pytest.mark.slow
def test_tasks_of_a_slurm_step_meet_without_a_launcher(tmp_path):
    (tmp_path / "ranks.py").write_text(FOUND.replace('dist.init_process_group("gloo")', "").split("assert dist")[0])
    step = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "8",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0",
    }  # fmt: skip
    tasks = [start(tmp_path / "ranks.py", {**step, "SLURM_PROCID": n, "SLURM_LOCALID": n}) for n in "01"]
    for task in tasks:
        _, err = task.communicate(timeout=200)
        assert task.returncode == 0, err[-3000:]
