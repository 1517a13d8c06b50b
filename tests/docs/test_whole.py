"""`make test-full DATA=…`: every command of README and docs as it stands, each in a folder of its own; hours."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT, documented
from tests.docs.plans import PLANS

pytestmark = [pytest.mark.full, pytest.mark.timeout(0)]

DOCUMENTED = documented()
WHOLE = {"CONFIG": "configs/demo.yaml", "CONFIG...": "configs/demo.yaml", "data.source=DIR": "data.source=DATA"}


@pytest.mark.parametrize("text", [text for text in PLANS if text in DOCUMENTED])
def test_as_it_stands(text: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    if needs := DOCUMENTED[text].needs or PLANS[text].skip:
        pytest.skip(f"needs {needs}" if DOCUMENTED[text].needs else needs)
    for name in ("Makefile", "setup.py", "constraints.txt", "bench", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in [*_before(text), text]:
        words = _words(command, pytestconfig.getoption("data"))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PATH": path})
        assert done.returncode == 0, shlex.join(words)
    shutil.rmtree(tmp_path)


def _before(text: str) -> list[str]:
    """The commands that come before, each after its own."""
    found: list[str] = []
    for command in PLANS[text].after:
        found += [one for one in [*_before(command), command] if one not in found]
    return found


def _words(text: str, data: str | None) -> list[str]:
    swaps = {**WHOLE, **PLANS[text].whole}
    words = [swaps.get(word, word) for word in shlex.split(text)]
    if "DATA" in " ".join(words):
        if data is None:
            pytest.skip("it needs --data, a folder of CIFAR-10 as parquet (make test-full DATA=…)")
        words = [word.replace("DATA", str(Path(data).resolve())) for word in words]
    if words[0] == "make":  # the environment that the tests run in is installed already
        environment = Path(sys.executable).parents[1]
        words += [f"VENV={environment}", f"--assume-old={environment / '.installed'}"]
    return words
