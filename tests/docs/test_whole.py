"""`make test-full DATA=…`: every command of README and docs as it stands, each in a folder of its own; hours."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT, documented
from tests.docs.plans import PLANS
from tests.docs.tied import tied

pytestmark = [pytest.mark.full, pytest.mark.timeout(0)]

DOCUMENTED = documented()
WHOLE = {"CONFIG": "configs/demo.yaml", "CONFIG...": "configs/demo.yaml", "data.source=DIR": "data.source=DATA"}


def _row(text: str) -> tuple[str, ...]:
    """The command behind those that come before it, each of them behind its own."""
    found: list[str] = []
    for command in PLANS[text].after:
        found += [one for one in _row(command) if one not in found]
    return (*found, text)


TEXTS = [text for text in PLANS if text in DOCUMENTED]
STARTS = {_row(text)[:length] for text in TEXTS for length in range(1, len(_row(text)))}  # what others go on from


class Rooms:
    """A folder for each row of commands, in which they were carried out one after another; each row once."""

    def __init__(self, base: Path, data: str | None) -> None:
        self._base, self._data = base, data
        self._made: dict[tuple[str, ...], Path | None] = {}

    def after(self, row: tuple[str, ...]) -> Path:
        """The folder after the row's last command. Fails where one of them failed, then or before."""
        if row in self._made:
            room = self._made[row]
            assert room, f"it failed before: {row[-1]}"
            return room
        words = _words(row[-1], self._data)
        self._made[row] = None
        room = self._base / f"room{len(self._made)}"
        if row[:-1]:
            shutil.copytree(self.after(row[:-1]), room, symlinks=True)
        else:
            _furnish(room, PLANS[row[-1]].copied)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        assert tied(words, room, {**os.environ, "PATH": path}) == 0, shlex.join(words)
        self._made[row] = room
        return room


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Rooms:
    return Rooms(tmp_path_factory.mktemp("rooms"), pytestconfig.getoption("data"))


@pytest.mark.parametrize("text", TEXTS, ids=TEXTS)  # whole, for -k: pytest would cut long ones
def test_as_it_stands(text: str, rooms: Rooms) -> None:
    if needs := DOCUMENTED[text].needs or PLANS[text].skip:
        pytest.skip(f"needs {needs}" if DOCUMENTED[text].needs else needs)
    room = rooms.after(_row(text))
    if _row(text) not in STARTS:
        shutil.rmtree(room)


def _furnish(room: Path, copied: bool) -> None:
    """What commands of a checkout name; `copied`, they may write into it."""
    room.mkdir()
    for name in ("Makefile", "setup.py", "constraints.txt", "bench", "launch", *(["fedscale"] if copied else [])):
        if copied and (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, room / name, ignore=shutil.ignore_patterns(".peers", "__pycache__"))
        else:
            (room / name).symlink_to(ROOT / name)


def _words(text: str, data: str | None) -> list[str]:
    swaps = {**WHOLE, **PLANS[text].whole}
    words = [part for word in shlex.split(text) for part in (swaps[word].split() if word in swaps else [word])]
    if "DATA" in " ".join(words):
        if data is None:
            pytest.skip("it needs --data, a folder of CIFAR-10 as parquet (make test-full DATA=…)")
        words = [word.replace("DATA", str(Path(data).resolve())) for word in words]
    if words[0] == "make":  # the environment that the tests run in is installed already
        environment = Path(sys.executable).parents[1]
        words += [f"VENV={environment}", f"--assume-old={environment / '.installed'}"]
    return words
