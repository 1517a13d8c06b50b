"""Two jobs on one run folder, in every stage: the second is refused by the first one's name, or does the same work."""

import os
import sys
from collections.abc import Callable

import pytest

from fedscale import lock
from tests.faults.tiny import STAGES, Said, Tiny

ALONE = ("pretrain", "federate", "align")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_job_amid_a_stage_changes_no_byte_of_it(
    stage: str, begun: Callable[..., Tiny], finished: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, second, pid = begun(stage), list[Said](), os.getpid()
    described = tiny.folder / "environment.json"

    def again() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: pid + 1)  # another process, which temporary files are named after
            before = described.read_bytes() if stage in ALONE else b""
            patch.setattr(sys, "argv", ["fedscale", "again"])
            second.append(tiny.command(stage, patch))
            assert stage not in ALONE or described.read_bytes() == before, "it tells how the results were made"

    first = tiny.command(stage, monkeypatch, again)
    assert first.code == 0, first
    assert tiny.results(stage) == finished.results(stage) and tiny.unfinished() == []
    (other,) = second
    if stage in ALONE:
        line = f"error: {tiny.folder / stage}: another process (pid {pid} of "
        assert other.code == 2 and other.complaint.startswith(line), other
        assert other.complaint.endswith(") works on it; wait for its end, or stop it\n")
        assert other.complaint.count("\n") == 1 and not other.lines
    else:  # they share the work, or do the same
        assert other.code == 0 and not other.complaint, other
    assert not (tiny.folder / stage / lock.FILE).exists()
