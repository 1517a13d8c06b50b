"""docs/extending.md does what it says: its files are written out, its commands and its Python are carried out."""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedscale import files
from fedscale.cli import app

GUIDE = Path(__file__).parent.parent / "docs" / "extending.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
def test_every_block_of_the_guide_runs_in_its_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran, names = 0, dict[str, Any]()
    sys.path.append(str(folder))  # as `python script.py` would have it
    for kind, text in BLOCKS:
        named = FILE.match(text)
        if named:
            (folder / named[1]).write_text(text, encoding="utf-8")
        elif kind == "bash":
            for line in text.splitlines():
                words = shlex.split(line)
                assert words[0] == "fedscale"
                result = CliRunner().invoke(app, words[1:])
                assert result.exit_code == 0, result.output
                ran += 1
        elif kind == "python":
            exec(compile(text, str(GUIDE), "exec"), names)
            ran += 1
    assert ran == 4
    runs = {path.parent.parent.name for path in (folder / "runs").rglob("federate/model.safetensors")}
    assert runs == {"mine", "again", "from_python", "in_memory"}
    assert (folder / "runs/from_python/report/report.html").exists()
    recorded = files.read_json(folder / "runs/from_python/federate/evaluation.json")
    assert names["judged"].confusion == recorded["confusion"] and names["rows"][0]["all"] == round(recorded["all"], 3)


def test_what_the_guide_has_one_write_is_under_40_lines() -> None:
    files = {
        FILE.match(text)[1]: len(text.splitlines()) for kind, text in BLOCKS if kind == "python" and FILE.match(text)
    }
    assert {"my_method.py", "my_model.py", "my_data.py"} <= set(files)
    assert all(lines <= 40 for lines in files.values()), files


def test_all_that_the_guide_names_for_a_command_is_there() -> None:
    names = set(re.findall(r"`(fedscale(?:\.\w+)+)`", TEXT))
    assert len(names) > 15
    for name in names:
        module, _, part = name.rpartition(".")
        assert hasattr(import_module(module), part) or import_module(name), name


def test_every_command_stands_in_the_guides_table() -> None:
    for group in (app, *(entry.typer_instance for entry in app.registered_groups)):
        for command in group.registered_commands:
            name = command.name or command.callback.__name__
            assert re.search(rf"^\|.*\b{name}\b.*\|", TEXT, flags=re.MULTILINE), name
