"""The command line: exit codes, one-line errors, and nothing heavy imported before it is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def fedscale(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedscale", *words], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(chr(10).join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_help_names_every_command_and_imports_no_torch() -> None:
    shown = fedscale("--help")
    assert shown.returncode == 0
    stages = ("run", "prepare", "caption", "pretrain", "federate", "align", "report")
    for command in (*stages, "fetch", "methods", "shards", "sweep", "submit", "doctor"):
        assert f"│ {command} " in shown.stdout
    assert "torch" not in modules_after("import fedscale.cli")


def test_federate_needs_neither_open_clip_nor_transformers_nor_deepspeed_nor_accelerate() -> None:
    loaded = modules_after("import fedscale.federated.rounds")
    assert "torch" in loaded
    assert not loaded & {"open_clip", "transformers", "deepspeed", "accelerate", "matplotlib", "webdataset"}


def test_dry_run_prints_a_config_that_reads_back(tmp_path: Path) -> None:
    shown = fedscale("run", "configs/demo.yaml", "--dry-run", "federate.rounds=3", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    resolved = yaml.safe_load(shown.stdout)
    assert (resolved["federate"]["rounds"], resolved["data"]["name"]) == (3, "shapes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "configs/demo.yaml", "federate.roundz=3"], "did you mean federate.rounds?"),
        (["run", "configs/gone.yaml"], "configs/gone.yaml: no such config file"),
        (["run", "configs/cifar10_lt.yaml", "variant=fedavg", "data.source=nowhere"], "data.source"),
        (
            ["federate", "configs/demo.yaml", "data.imbalance_factor=0.1"],
            "imbalance_factor=0.1: expected 1 (balanced) or more",
        ),
        (["federate", "configs/demo.yaml", "out=/dev/null", "variant=fedavg"], "cannot be written"),
        (["run", "configs/demo.yaml", "out=/proc/x"], "/proc: no folder can be made in it"),
        (["submit", "configs/demo.yaml", "out=/proc/x/y", "--print"], "/proc: no folder can be made in it"),
        (["shards", "build", "shards/shapes.yaml", "--out", "/proc/x"], "/proc: no folder can be made in it"),
        (["shards", "build", "shards/cifar10_lt.yaml", "--out", "built", "source=nowhere"], "nowhere"),
        (["shards", "build", "shards/shapes.yaml", "--out", "built", "classes=11"], "11"),
        (["shards", "status", "."], "manifest"),
        (["sweep", "configs/sweeps/demo_methods.yaml", "--list", "--report"], "--list and --report: expected one"),
        (["sweep", "configs/sweeps/demo_methods.yaml", "tune.budget=1"], "2 candidates, above tune.budget=1"),
    ],
)
def test_the_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], line: str) -> None:
    result = fedscale(*words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    (error,) = result.stderr.strip().splitlines()
    assert error.startswith("error: ") and line in error
    described = ("config.yaml", "environment.json")  # what a run folder starts with, whole
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name not in described] == []


INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
IN_CPP = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    os.abort()
"""


@pytest.mark.parametrize(
    ("library", "code", "words"),
    [
        ("typer", INTERRUPTED, ["--help"]),
        ("omegaconf", INTERRUPTED, ["run"]),
        ("torch", IN_CPP, ["plan", "configs/demo.yaml"]),
    ],
)
def test_an_interrupt_while_a_library_is_imported_is_quiet(
    tmp_path: Path, library: str, code: str, words: list[str]
) -> None:
    (tmp_path / f"{library}.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}"}
    command = [sys.executable, "-m", "fedscale", *words]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr.strip()) == (130, "", "")


def test_methods_are_listed_for_people_and_for_programs() -> None:
    assert "McMahan" in fedscale("methods").stdout
    listed = [m["method"] for m in json.loads(fedscale("methods", "--json").stdout)]
    assert listed[0] == "fedavg" and {"scaffold", "fedprox", "fedyogi"} < {*listed}


def test_on_a_narrow_terminal_each_method_is_a_paragraph_that_says_what_the_table_says() -> None:
    from io import StringIO

    from rich.console import Console

    from fedscale.cli_methods import methods_paragraphs

    rows = [
        {
            "method": "mine", "citation": "Me, 2026", "client": "a pass", "upload": "", "server": "", "from": "my:Mine",
            "options": {"mu": 0.1}, "backends": ["loop"], "shard": "1: needs features",
        },
        {"method": "gone", "from": "no:Such", "error": "cannot be imported"},
    ]  # fmt: skip
    written = StringIO()
    for shown in methods_paragraphs(rows):
        Console(file=written, width=60).print(shown)
    assert [line.rstrip() for line in written.getvalue().splitlines()] == [
        "mine  Me, 2026 (my:Mine)",
        "    client: a pass",
        "    options: mu 0.1",
        "    federate.shard 1: needs features",
        "gone  (no:Such)",
        "    error: cannot be imported",
    ]


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert fedscale("--version").stdout.strip() == f"fedscale {version('mllm-fedscale')}"
