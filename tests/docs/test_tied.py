"""No command goes on without the tests that started it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.tied import tied

SCRIPT = """
import os, sys
from pathlib import Path
from tests.docs.tied import tied

sys.exit(tied(["bash", "-c", sys.argv[1]], Path("."), dict(os.environ)))
"""
ALONE = "echo begun; exec sleep 600"
WITH_A_CHILD = "sleep 600 & echo begun; wait"


def started(command: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, command], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (ALONE, signal.SIGKILL),
        (ALONE, signal.SIGTERM),
        (WITH_A_CHILD, signal.SIGTERM),
        (WITH_A_CHILD, signal.SIGINT),
    ],
)
def test_what_ends_the_tests_ends_the_command(command: str, number: signal.Signals) -> None:
    with started(command) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)  # until nobody has the pipe any more
    assert said == "" and process.returncode != 0


def test_a_command_has_its_folder_and_its_exit_code(tmp_path: Path) -> None:
    assert tied(["bash", "-c", 'touch "$NAME"; exit 3'], tmp_path, {"NAME": "here", "PATH": "/usr/bin:/bin"}) == 3
    assert (tmp_path / "here").exists()
