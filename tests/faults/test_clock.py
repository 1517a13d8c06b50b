"""The wall clock jumps in the middle of every stage, a day forward or an hour back: nobody notices."""

import math
import os
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from fedscale import files
from fedscale.checkpoints import newest
from fedscale.lease import Leases
from fedscale.server.caption.engines import backoff
from tests.faults.tiny import MIDDLE, STAGES, Tiny
from tests.ranks import ranks

JUMPS = {"a day forward": 86_400.0, "an hour back": -3_600.0}
LONGEST = 600.0  # seconds that a tiny stage takes at most, on however busy a machine
PREFIX = {"pretrain": "step", "federate": "round"}

RANK = """
import sys, time
import torch
from fedscale.distributed.mesh import open_mesh
from fedscale.distributed.waiting import by_main
from fedscale.session import Session

now = time.time
with open_mesh(torch.device("cpu"), 1, 30, print) as mesh:
    for number, seconds in enumerate((86_400.0, -3_600.0)):
        if mesh.rank == number:  # one rank's clock and then the other's
            time.time = lambda: now() + seconds
        mesh.barrier(f"jump {number}")
        by_main(mesh, Session(), lambda session: [session.stop_requested or time.sleep(0.3) for _ in range(8)])
        total = mesh.sum_over_clients(torch.ones(1))
    print(int(total), flush=True)
"""


def jump(seconds: float, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The clock, and what is on the disk already by the clock as it was before."""
    now, now_ns = time.time, time.time_ns
    patch.setattr(time, "time", lambda: now() + seconds)
    patch.setattr(time, "time_ns", lambda: now_ns() + int(seconds * 1e9))
    for path in folder.rglob("*"):  # by the new clock it is older or younger than it should be
        stamp = path.lstat().st_mtime - seconds
        os.utime(path, (stamp, stamp), follow_symlinks=False)


def durations(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Whatever a file says of seconds, rates and shares of time."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from durations(value, key if name != "seconds" else f"seconds.{key}")
    elif isinstance(tree, int | float) and ("second" in name or name in ("data_wait", "teacher_share")):
        yield name, float(tree)


def told(folder: Path) -> list[tuple[str, float]]:
    trees = [files.read_json(path) for path in folder.glob("*.json")]
    trees += [row for path in folder.glob("metrics.jsonl") for row in files.read_jsonl(path)]
    return [pair for tree in trees for pair in durations(tree)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seconds", JUMPS.values(), ids=JUMPS)
def test_a_stage_ends_as_ever_and_its_times_are_sane(
    seconds: float, stage: str, begun: Callable[..., Tiny], finished: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = begun(stage)
    with monkeypatch.context() as patch:
        done = tiny.command(stage, monkeypatch, lambda: jump(seconds, tiny.place, patch))
    assert done.code == 0, done
    assert tiny.results(stage) == finished.results(stage)
    times = told(tiny.folder / stage)
    assert bool(times) == (stage in ("caption", "pretrain", "federate", "align"))
    for name, value in times:
        assert math.isfinite(value) and value >= 0, (name, value)
        assert "per_second" in name or value < LONGEST, (name, value)


@pytest.mark.parametrize("stage", PREFIX)
@pytest.mark.parametrize("seconds", JUMPS.values(), ids=JUMPS)
def test_the_newest_checkpoint_is_the_one_of_the_highest_number(
    seconds: float, stage: str, begun: Callable[..., Tiny], finished: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, last = begun(stage), MIDDLE[stage] - 1  # the first sign of progress says where the stage begins

    def break_off() -> None:
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        tiny.command(stage, monkeypatch, break_off)
    found = newest(tiny.folder / stage, PREFIX[stage])
    assert found is not None and found[0] <= last
    for number, path in enumerate(sorted((tiny.folder / stage).glob(f"{PREFIX[stage]}_*"), reverse=True)):
        os.utime(path, (number, number))  # the younger by number is the older by date
    with monkeypatch.context() as patch:
        jump(seconds, tiny.place, patch)
        done = tiny.command(stage, monkeypatch)
    assert done.code == 0 and any(f"resuming after {PREFIX[stage]} {found[0]} of" in line for line in done.lines), done
    assert tiny.results(stage) == finished.results(stage)


@pytest.mark.parametrize("seconds", JUMPS.values(), ids=JUMPS)
def test_a_lease_that_beats_is_nobody_elses_whatever_the_clock_says(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, watcher = Leases(tmp_path, 0.3), Leases(tmp_path, 0.3)
    lease = owner.claim("00000")
    assert lease is not None
    with lease, monkeypatch.context() as patch:
        jump(seconds, tmp_path, patch)
        assert watcher.revive(["00000"]) == [] and watcher.claim("00000") is None
        assert lease.held() and not lease.taken.is_set()


@pytest.mark.parametrize("seconds", JUMPS.values(), ids=JUMPS)
def test_an_endpoints_date_is_read_by_its_own_clock(seconds: float) -> None:
    theirs = time.time() + seconds
    headers = {"retry-after": formatdate(theirs + 30, usegmt=True), "date": formatdate(theirs, usegmt=True)}
    assert backoff.wait_seconds(1, 0.0, headers) == 30


@pytest.mark.slow
def test_ranks_whose_clocks_jump_apart_lose_nobody(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    done = ranks(2, tmp_path / "rank.py")
    assert done.returncode == 0 and done.stdout == "2\n2\n", done.stdout + done.stderr[-3000:]
