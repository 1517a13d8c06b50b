"""A lock has one owner at a time, says who that is, and is free at once when it is dead."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedscale import lock
from fedscale.errors import Stopped, UserError
from fedscale.lease import Leases
from fedscale.session import Session

HOLD = """
import sys, time
from pathlib import Path
from fedscale import lock
from fedscale.session import Session

with lock.held(Path(sys.argv[1]), "federate", Session()):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "federate" / lock.FILE


@pytest.fixture
def other(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused, lock.held(path, "runs/x/federate", Session()):
        pass
    return str(refused.value)


@contextmanager
def free_after(seconds: float, path: Path) -> Iterator[None]:
    """Another open file has the lock for so long."""
    file = os.open(path, os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    timer = threading.Timer(seconds, lambda: os.close(file))
    timer.start()
    yield
    timer.join()


def test_a_second_job_is_refused_with_the_name_of_the_first(path: Path, other: subprocess.Popen[str]) -> None:
    line = refusal(path)
    assert line.startswith("runs/x/federate: another process (pid ")
    assert f"(pid {other.pid} of " in line and line.endswith(") works on it; wait for its end, or stop it")
    assert path.exists(), "and leaves the lock alone"


def test_the_owner_is_a_rank_of_its_slurm_job_where_there_is_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    with lock.held(path, "federate", Session()):
        monkeypatch.setenv("SLURM_JOB_ID", "124")
        assert "runs/x/federate: rank 0 of job 123 (pid" in refusal(path)
        owner = lock.owner_of(path)
    assert owner is not None and owner.command and owner.host and owner.pid == os.getpid()


def test_a_killed_owners_lock_is_free_at_once_and_nothing_is_left_of_it(
    path: Path, other: subprocess.Popen[str]
) -> None:
    other.kill()
    other.wait()
    assert path.exists() and lock.owner_of(path) is None
    with lock.held(path, "federate", Session()):
        assert lock.owner_of(path) is not None
    assert list(path.parent.iterdir()) == []


def test_a_frozen_owner_keeps_its_lock(path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGSTOP)
    assert f"pid {other.pid}" in refusal(path)


def test_who_may_wait_says_so_once_and_has_it_next(path: Path) -> None:
    session = Session()
    path.parent.mkdir()
    path.write_text("")
    with free_after(1.0, path), lock.held(path, "federate", session, wait=lambda owner: True):
        assert session.reporter.lines == ["federate: another process works on it; waiting for its end"]


def test_who_waits_can_be_stopped(path: Path, other: subprocess.Popen[str]) -> None:
    session = Session()
    threading.Timer(0.5, session.stop.set).start()
    with (
        pytest.raises(Stopped, match=f"federate: stopped while .*pid {other.pid}"),
        lock.held(path, "federate", session, wait=lambda owner: True),
    ):
        pass


def test_an_owner_that_is_just_dying_is_given_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 60.0)
    path.parent.mkdir()
    path.write_text("")
    with free_after(0.5, path), lock.held(path, "federate", Session()):
        pass


@pytest.mark.parametrize(("job", "waits"), [("123", True), ("124", False)])
def test_a_requeued_job_waits_for_what_the_last_node_held_and_another_job_does_not(
    job: str, waits: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"host": "lost", "pid": 1, "user": "anna", "job": "123", "restart": 0}))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with free_after(0.5, path):
        if waits:
            with lock.held(path, "federate", Session()):
                pass
        else:
            assert "rank 0 of job 123 (pid 1 of anna on lost" in refusal(path)


def _locks_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are."""


def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)


@pytest.mark.parametrize("kind", [_locks_of_the_kernel, _no_locks])
def test_many_at_once_have_it_one_after_the_other(
    kind: Callable[[pytest.MonkeyPatch], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind(monkeypatch)
    monkeypatch.setattr(lock, "HEARTBEAT", 2.0)
    monkeypatch.setattr(lock, "POLL", 0.002)
    inside, most, turns = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, turns
        for _ in range(5):
            with lock.held(path, "federate", Session(), wait=lambda owner: True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1
                turns += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 20)
    assert list(path.parent.iterdir()) == []


def test_without_locks_of_the_file_system_a_lease_has_one_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_locks(monkeypatch)
    with lock.held(path, "federate", Session()) as lost:
        assert f"pid {os.getpid()}" in refusal(path) and not lost.is_set()
        owner = lock.owner_of(path)
        assert owner is not None and owner.pid == os.getpid()
    assert lock.owner_of(path) is None and list(path.parent.iterdir()) == []


def test_a_lease_is_taken_over_from_the_dead_and_who_wakes_up_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_locks(monkeypatch)
    path.parent.mkdir()
    Leases(path.parent, 1000).claim(path.name)  # and never beats
    with lock.held(path, "federate", Session()) as lost:
        (path.parent / f"{path.name}.lease").write_text('{"owner": "another", "beat": 0}')
        assert lost.wait(10), "it stops at its next step"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{path.name}.lease"]


def test_a_file_that_was_let_go_and_is_found_by_its_name_still_is_nobodys_lock(path: Path) -> None:
    """As NFS may show it for a while on another machine."""
    path.parent.mkdir()
    path.write_bytes(lock.OVER)
    threading.Timer(0.5, path.unlink).start()
    with lock.held(path, "federate", Session(), wait=lambda owner: True):
        assert lock.owner_of(path) is not None and json.loads(path.read_text())["pid"] == os.getpid()


def test_a_folder_that_cannot_be_written_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert refusal(path) == f"{path}: cannot be written (the disk is full: free some space)"
    assert list(path.parent.iterdir()) == []
