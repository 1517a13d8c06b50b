"""The array's script: what it holds, and that a task's signal becomes a saved state and a requeue."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscale.errors import UserError
from fedscale.sweep import Sweep, runs, slurm

Opened = Callable[..., Sweep]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def test_numbers_are_written_as_slurm_does() -> None:
    assert slurm.array([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert slurm.array([4], at_once=3) == "4%3"


def test_the_script_has_the_sweeps_words_and_options_and_no_gap(opened: Opened) -> None:
    sweep = opened("slurm.options=[--time=00:10:00,--gres=gpu:1]")
    first, later = slurm.phases(list(runs(sweep)))
    assert (first, later) == (list(range(10)), list(range(10, 22)))
    script = slurm.script(sweep, ["a b.yaml", "seeds=[1]"], first, 4)
    text = script.read_text()
    assert "#SBATCH --array=0-9%4\n" in text and "#SBATCH --gres=gpu:1\n" in text
    assert f"{sys.executable} -m fedscale sweep 'a b.yaml' 'seeds=[1]' --only \"$number\"\n" in text
    assert not re.search(r"__[A-Z]+__|#include", text)
    for line in ("--signal=B:TERM@120", "--open-mode=append", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    done = subprocess.run([SHELLCHECK, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_signalled_task_saves_its_state_and_is_requeued(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a fake Slurm, whose steps are told by scancel; on a real one: tests/cluster/test_slurm_sweep.py."""
    run = 'echo $$ > step; trap "exit 75" TERM; env | grep ^SLURM_ARRAY_TASK > task; echo "$@" > begun'
    python = executable(tmp_path / "python", f"{run}; while :; do sleep 0.02; done")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    executable(tmp_path / "bin" / "scontrol", '[ "$1" = show ] || echo "$@" > requeued')
    executable(tmp_path / "bin" / "srun", '[ "$1" = --ntasks=1 ] && shift && exec "$@"')
    executable(tmp_path / "bin" / "scancel", 'echo "$@" > cancelled; kill -TERM "$(cat step)"')
    path = slurm.script(opened(), ["trial.yaml"], [3])
    told = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "9", "SLURM_ARRAY_JOB_ID": "77"}
    told |= {"SLURM_JOB_ID": "80", "SLURM_JOB_NODELIST": "n1"}
    environment = {**os.environ, **told, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    task = subprocess.Popen(["bash", str(path)], env=environment)
    begun = tmp_path / "begun"
    while task.poll() is None and not (begun.exists() and begun.read_text()):
        os.sched_yield()
    task.send_signal(signal.SIGTERM)
    assert task.wait(60) == 75
    assert begun.read_text() == "-m fedscale sweep trial.yaml --only 3\n"
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 77_3\n"
    assert (tmp_path / "requeued").read_text() == "requeue 77_3\n"
    assert (tmp_path / "task").read_text() == "", "captioning sees no array"


def test_the_final_runs_are_submitted_after_the_tuning(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "bin" / "sbatch", f'echo "$@" >> {tmp_path}/calls; echo 4$(wc -l < {tmp_path}/calls)')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    waves = slurm.phases(list(runs(opened())))
    assert slurm.submit(tmp_path / "sweep.sbatch", waves, 2) == ["41", "42"]
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"--parsable --array=0-9%2 {tmp_path}/sweep.sbatch",
        f"--parsable --array=10-21%2 --dependency=afterok:41 --kill-on-invalid-dep=yes {tmp_path}/sweep.sbatch",
    ]


def test_without_slurm_submitting_is_one_line(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--submit: no sbatch on this machine"):
        slurm.submit(tmp_path / "sweep.sbatch", [[0]])
    executable(tmp_path / "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(UserError, match=r"sbatch refused .*invalid partition"):
        slurm.submit(tmp_path / "sweep.sbatch", [[0]])
