"""A launcher's exit code is that of its ranks."""

import sys
from pathlib import Path

import pytest

from fedscale.cluster import launcher

HEAD = """
import signal, sys
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

def failed(*codes):
    ranks = {rank: ProcessFailure(rank, 1, code, "") for rank, code in enumerate(codes)}
    for rank, failure in ranks.items():
        failure.timestamp = rank
    raise ChildFailedError("fedscale", ranks)

assert sys.argv[1:] == ["-m", "fedscale"]
"""


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("failed(2, 2)", 2),  # the user's mistake
        ("failed(1, 75)", 75),  # one rank lost another that was stopped
        ("failed(-9, 1)", 137),  # killed first; the other noticed
        ("raise SignalException('told', signal.SIGTERM)", 75),
        ("raise SignalException('told', signal.SIGINT)", 130),
        ("sys.exit(3)", 3),
    ],
)
def test_a_stop_a_kill_and_a_mistake_are_told_apart(
    ends: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_launcher.py").write_text(f"{HEAD}\n{ends}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["launcher", "some_launcher", "-m", "fedscale"])
    with pytest.raises(SystemExit) as exit_:
        launcher.main()
    assert exit_.value.code == code
    sys.modules.pop("some_launcher", None)
