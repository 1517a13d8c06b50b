"""The scripts that `fedscale submit` renders: whole, clean for shellcheck, and deaf to shell words in values."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscale.cli import app
from fedscale.cluster.render import directive, node_folder
from fedscale.cluster.request import LAUNCHERS, Request
from fedscale.cluster.submit import submit, write_scripts
from fedscale.config import load_config
from fedscale.errors import UserError

WORDS = ["configs/demo.yaml", "variant=full", "seeds=[1]", "threads=1"]
ALL = ["prepare", "caption", "pretrain", "federate", "align", "report"]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a space in its name, where fake commands of Slurm's write down what they are given."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return folder


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def shellcheck(*paths: Path) -> None:
    done = subprocess.run([SHELLCHECK, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("more", [{}, {"gpus": 4, "stage_in": "$TMPDIR/it's", "container": "docker://x:1", "array": 9}])
def test_every_script_is_whole_and_clean(launcher: str, more: dict[str, object]) -> None:
    submission = write_scripts(load_config(WORDS), Request(nodes=2, launcher=launcher, time="1:00:00", **more))  # type: ignore[arg-type]
    assert submission.stages == ALL
    for script in [submission.script(stage) for stage in [*ALL, "pipeline"]]:
        text = script.read_text()
        assert not re.search(r"__[A-Z_]+__|#include", text), script
        if script != submission.chain:
            for line in ("--signal=B:TERM@120", "--open-mode=append", "--requeue", "--time=1:00:00"):
                assert f"#SBATCH {line}\n" in text
            assert "export OMP_NUM_THREADS=1\n" in text
    shellcheck(*[submission.script(stage) for stage in [*ALL, "pipeline"]])


def test_resources_go_where_they_are_needed() -> None:
    config = load_config([*WORDS, "caption.engine=vllm", "caption.vllm.tensor_parallel_size=2"])
    submission = write_scripts(config, Request(nodes=3, gpus=4, throttle=5, launcher="srun", options=("--qos=high",)))
    text = {stage: submission.script(stage).read_text() for stage in ALL}
    for stage, nodes, tasks, gpus in (
        ("prepare", 1, 1, 0), ("caption", 1, 1, 2), ("pretrain", 3, 4, 4), ("federate", 3, 4, 4), ("report", 1, 1, 0),
    ):  # fmt: skip
        wanted = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--qos=high"]
        for line in [*wanted, *([f"--gpus-per-node={gpus}"] if gpus else [])]:
            assert f"#SBATCH {line}\n" in text[stage], stage
        assert ("--gpus-per-node" in text[stage]) == bool(gpus), stage
    assert "#SBATCH --array=0-11%5\n" in text["caption"]
    assert "--kill-on-bad-exit=1" in text["federate"]


def test_words_of_a_config_reach_the_command_and_no_shell(here: Path, tmp_path: Path) -> None:
    """A name full of the shell's own signs, under a fake Slurm: the stage sees it as it is, nothing else happens."""
    executable(tmp_path / "bin" / "srun", 'while [ "$1" != bash ]; do shift; done; SLURM_NODEID=0 exec "$@"')
    executable(tmp_path / "bin" / "scontrol", 'if [ "$2" = hostnames ]; then echo n1; else echo NodeAddr=10.0.0.1; fi')
    python = executable(tmp_path / "py thon", 'printf "%s\\n" "$@" > arguments')
    out = here / "$(touch owned); `touch owned` '& touch owned #__PYTHON__"
    submission = write_scripts(load_config([*WORDS, f"out={out}"]), Request(stage="federate"))
    script = submission.script("federate").read_text().replace(sys.executable, f"'{python}'")
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}
    done = subprocess.run(["bash", "-c", script], env={**os.environ, **told}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (here / "arguments").read_text().splitlines()[-2:] == [
        "federate",
        str(next(submission.folder.glob("c*.yaml"))),
    ]
    assert not list(here.rglob("owned"))


def test_what_no_script_can_name_is_refused_by_its_name() -> None:
    assert directive("/a b/c", "out") == '"/a b/c"'
    for value in ('a"b', "a\nb", "a\\b"):
        with pytest.raises(UserError, match="out="):
            directive(value, "out")
    for key, value in {"time": "1:00\n#SBATCH --x", "partition": "a b", "options": ("-x",), "stage_in": "tmp"}.items():
        with pytest.raises(UserError, match="--"):
            Request(**{key: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--container=\./none\.sif: no such file"):
        write_scripts(load_config(WORDS), Request(container="./none.sif"))
    with pytest.raises(UserError, match="--stage=pretrain: no run of demo has that stage"):
        write_scripts(load_config(["configs/demo.yaml", "variant=fedavg"]), Request(stage="pretrain"))


@pytest.mark.parametrize("folder", ["/scratch/a b", "$TMPDIR", "${TMPDIR}/it's $(x)", "/a$TMPDIR"])
def test_a_node_folder_begins_with_a_variable_or_is_meant_literally(folder: str) -> None:
    done = subprocess.run(
        ["bash", "-uc", f"printf %s {node_folder(folder)}"], env={"TMPDIR": "/t m p"}, capture_output=True, text=True
    )
    expected = re.sub(r"^\$\{?TMPDIR\}?", "/t m p", folder)
    assert done.stdout == expected, done.stderr


def test_the_jobs_wait_for_one_another_and_none_is_left_when_one_is_refused(here: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    count = f'echo "$@" >> "{calls}"; n=$(wc -l < "{calls}")'
    submission = write_scripts(load_config(WORDS), Request())
    executable(tmp_path / "bin" / "sbatch", f'{count}; echo "4$n;cluster"')
    jobs = submit(submission)
    assert [(job["stage"], job["job"]) for job in jobs] == [(stage, f"4{n}") for n, stage in enumerate(ALL, 1)]
    given = calls.read_text().splitlines()
    assert given[0] == f"--parsable {submission.script('prepare')}"
    assert given[2] == f"--parsable --dependency=afterok:42 --kill-on-invalid-dep=yes {submission.script('pretrain')}"
    assert json.loads((submission.folder / "submitted.jsonl").read_text())["jobs"] == jobs
    calls.unlink()
    executable(
        tmp_path / "bin" / "sbatch", f'{count}; [ "$n" -lt 3 ] || {{ echo "bad partition" >&2; exit 1; }}; echo $n'
    )
    executable(tmp_path / "bin" / "scancel", f'echo "$@" > "{tmp_path}/cancelled"')
    with pytest.raises(UserError, match=r"sbatch refused \(bad partition\)"):
        submit(submission)
    assert (tmp_path / "cancelled").read_text() == "1 2\n"


UNCONFIGURED = """
sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
sbatch: error: fetch_config: DNS SRV lookup failed
sbatch: error: _establish_config_source: failed to fetch config
sbatch: fatal: Could not establish a configuration source
"""


def test_where_slurm_is_not_configured_the_line_that_says_so_comes_with_the_remedy(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "sbatch", f"cat >&2 <<'END'{UNCONFIGURED}END\nexit 1")
    with pytest.raises(UserError) as raised:
        submit(write_scripts(load_config(WORDS), Request(stage="report")))
    assert str(raised.value) == (
        "submit: sbatch knows no cluster (Could not establish a configuration source); set SLURM_CONF to the cluster's "
        "slurm.conf, or hand the scripts in where Slurm is configured"
    )


def test_without_slurm_submitting_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    submission = write_scripts(load_config(WORDS), Request(stage="report"))
    assert submission.stages == ["report"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no sbatch on this machine; use --print"):
        submit(submission)


def test_the_config_that_jobs_read_is_the_one_that_was_submitted(here: Path) -> None:
    config = load_config(WORDS)
    submission = write_scripts(config, Request(stage="federate"))
    (snapshot,) = submission.folder.glob("config-*.yaml")
    assert load_config([str(snapshot)]) == config
    other = write_scripts(load_config([*WORDS, "federate.lr=0.1"]), Request(stage="federate"))
    assert str(snapshot) not in other.script("federate").read_text() and snapshot.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--nodes", "0"], "error: --nodes=0: expected 1 or more"),
        (["--launcher", "mpirun"], "error: --launcher=mpirun: expected one of torchrun, accelerate, deepspeed, srun"),
        (["--time", "1 hour"], "error: --time='1 hour': expected a word as sbatch takes it"),
        (["federate.lrr=1"], "error: federate.lrr: unknown key; did you mean federate.lr?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(words: list[str], line: str) -> None:
    done = CliRunner().invoke(app, ["submit", *WORDS, *words])
    assert done.exit_code == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert not Path("runs").exists()


def test_print_shows_the_script_and_json_the_jobs(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["submit", *WORDS, "--stage", "align", "--print"])
    assert shown.exit_code == 0 and shown.stdout == Path("runs/demo/slurm/align.sbatch").read_text()
    both = CliRunner().invoke(app, ["submit", *WORDS, "--stage", "align", "--print", "--json"])
    assert both.exit_code == 2 and "--print and --json" in both.stderr
    executable(tmp_path / "bin" / "sbatch", "echo 5")
    told = CliRunner().invoke(app, ["submit", *WORDS, "--stage", "align", "--json"])
    assert told.exit_code == 0 and [(row["stage"], row["job"]) for row in json.loads(told.stdout)] == [
        ("prepare", "5"),
        ("align", "5"),
    ]
