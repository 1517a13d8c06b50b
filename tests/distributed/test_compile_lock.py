"""A lock that a killed compiler left is taken away when its holder is known to be gone, and not before."""

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import cpp_extension

from fedscale.distributed import compile_lock
from fedscale.distributed.compile_lock import is_dead, release_dead_locks, sees_every_process, torch_waits_for_files
from fedscale.distributed.mesh import Mesh
from fedscale.distributed.training import Training


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpu_adam" / "lock"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(compile_lock, "torch_waits_for_files", lambda: True)
    return path


def on_this_host_alone(monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    monkeypatch.setattr(compile_lock, "sees_every_process", lambda lock: yes)


def age(lock: Path, seconds: float) -> None:
    os.utime(lock, (time.time() - seconds,) * 2)


def test_one_without_a_process_is_removed_and_named(
    lock: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_this_host_alone(monkeypatch, True)
    release_dead_locks(lock.parents[1])
    assert not lock.exists()
    assert caplog.messages == [f"{lock}: removed, a killed compilation had left it (no process has it open)"]


def test_one_that_a_process_has_open_is_left_alone(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_this_host_alone(monkeypatch, True)
    age(lock, 3600)
    with lock.open():
        release_dead_locks(lock.parents[1])
        assert lock.exists() and not is_dead(lock)
    assert is_dead(lock)


def test_one_of_another_host_is_removed_when_nothing_has_changed_beside_it(
    lock: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_this_host_alone(monkeypatch, False)
    assert not is_dead(lock)
    waits = []

    def compiling(seconds: float) -> None:
        waits.append(seconds)
        age(lock, 100 * len(waits))

    monkeypatch.setattr("time.sleep", compiling)
    release_dead_locks(lock.parents[1], stale=250)
    assert len(waits) == 3 and not lock.exists()
    waiting, removed = caplog.messages
    assert "another host may be compiling it; delete it if none is" in waiting
    assert "nothing beside it has changed for 250 s" in removed


def test_one_that_its_process_takes_away_ends_the_waiting(
    lock: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_this_host_alone(monkeypatch, False)
    monkeypatch.setattr("time.sleep", lambda seconds: lock.unlink())
    release_dead_locks(lock.parents[1])
    assert len(caplog.messages) == 1 and "another host may be compiling it" in caplog.messages[0]


def test_where_torch_locks_by_the_kernel_a_file_means_nothing(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cpp_extension, "FileBaton", None, raising=False)
    assert torch_waits_for_files()
    monkeypatch.delattr(cpp_extension, "FileBaton")
    on_this_host_alone(monkeypatch, True)
    age(lock, 3600)
    release_dead_locks(lock.parents[1])
    assert lock.exists() and not is_dead(lock)


def test_training_under_deepspeed_looks_for_them_before_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def looked(root: Path) -> None:
        asked.append(root)
        raise InterruptedError

    monkeypatch.setattr("fedscale.distributed.training.release_dead_locks", looked)
    monkeypatch.setattr("fedscale.distributed.training.make_accelerator", lambda *_: pytest.fail("it comes first"))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/compiled")
    module = nn.Linear(2, 2)
    with pytest.raises(InterruptedError):
        Training(Mesh(), module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert asked == [Path("/compiled")]


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "fuse.sshfs", "overlay"])
def test_a_file_system_of_several_hosts_or_containers_hides_processes(
    kind: str, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = lock.stat().st_dev
    line = "27 1 {}:{} / {} rw - {} /dev/vda rw\n".format(os.major(device), os.minor(device), lock.anchor, "{}")
    monkeypatch.setattr(os, "readlink", lambda path: compile_lock.FIRST_NAMESPACE)
    monkeypatch.setattr(Path, "read_text", lambda path: line.format("ext4"))
    assert sees_every_process(lock)
    monkeypatch.setattr(Path, "read_text", lambda path: line.format(kind))
    assert not sees_every_process(lock)
    monkeypatch.setattr(Path, "read_text", lambda path: line.format("ext4"))
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    assert not sees_every_process(lock), "processes of another container are not seen"
