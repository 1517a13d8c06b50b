"""The whole pipeline on a shrunken demo, by the command line: every variant, resumed, repeated, one process or two."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SMALL = [
    "seeds=[1]",
    "threads=1",
    "caption.max_images=400",
    "caption.kinds=[description,conversation]",
    "pretrain.epochs=1",
    "pretrain.save_every=3",
    "pretrain.probe.steps=4",
    "pretrain.probe.fractions=[0.1]",
    "federate.rounds=3",
    "federate.local_epochs=1",
    "align.epochs=1",
    "align.images_per_class=4",
]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedscale", *words]


def fedscale(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, cwd=cwd, timeout=300)


def results(run: Path) -> dict[str, bytes]:
    """The bytes of every model and evaluation of a run."""
    wanted = ("model.safetensors", "evaluation.json", "partition.json", "probe.json")
    return {
        str(path.relative_to(run)): path.read_bytes()
        for child in sorted(run.glob("*-s*"))
        for stage in sorted(child.iterdir())
        for path in sorted(stage.rglob("*") if stage.is_dir() else [])
        if path.name in wanted
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the small demo ran, two jobs at once."""
    folder = tmp_path_factory.mktemp("demo")
    done = fedscale(folder, "run", "configs/demo.yaml", "jobs=2", *SMALL)
    assert done.returncode == 0, done.stderr
    for word in ("fedavg", "pretrain", "align", "full", "report.html"):
        assert word in done.stdout
    yield folder


def test_every_variant_leaves_its_stages_and_one_report(finished: Path) -> None:
    run = finished / "runs" / "demo"
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert [row["variant"] for row in summary] == ["fedavg", "pretrain", "align", "full"]
    assert all(list(row) == sorted(row) and 0 <= row["all"] <= 100 for row in summary)
    assert {"variant", "method", "seed", "all", "many", "medium", "few", "seconds"} <= {*summary[0]}
    page = (run / "report" / "report.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    rows = [json.loads(line) for line in (run / "full-s1" / "caption" / "00000.jsonl").read_text().splitlines()]
    assert all({"key", "status", "texts"} <= {*row} for row in rows)
    environment = json.loads((run / "full-s1" / "environment.json").read_text())
    assert environment["seed"] == 1 and "torch" in environment["versions"]
    assert not (run / "fedavg-s1" / "caption").exists()


def test_a_second_run_finds_everything_complete(finished: Path) -> None:
    before = results(finished / "runs" / "demo")
    again = fedscale(finished, "run", "configs/demo.yaml", "jobs=2", *SMALL)
    assert again.returncode == 0, again.stderr
    assert "all stages are complete" in again.stderr
    assert results(finished / "runs" / "demo") == before


def test_one_process_and_two_give_the_same_bytes(finished: Path) -> None:
    again = fedscale(finished, "run", "configs/demo.yaml", "jobs=1", "out=alone", *SMALL)
    assert again.returncode == 0, again.stderr
    assert results(finished / "alone" / "demo") == results(finished / "runs" / "demo")
    assert len(results(finished / "runs" / "demo")) >= 12


def test_a_run_killed_in_federation_resumes_to_the_same_bytes(finished: Path) -> None:
    words = ["federate", "configs/demo.yaml", "variant=fedavg", *SMALL, "federate.rounds=12"]
    assert fedscale(finished, *words, "out=undisturbed").returncode == 0
    process = subprocess.Popen(command(*words, "out=killed"), cwd=finished, stderr=subprocess.PIPE)
    wait_for(finished / "killed" / "demo" / "fedavg-s1" / "federate" / "round_3" / "COMPLETE", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = fedscale(finished, *words, "out=killed")
    assert resumed.returncode == 0 and "resuming after round" in resumed.stderr
    assert results(finished / "killed" / "demo") == results(finished / "undisturbed" / "demo")
    rows = (finished / "killed" / "demo" / "fedavg-s1" / "federate" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == list(range(1, 13))


def test_workers_end_when_their_parent_is_killed(finished: Path) -> None:
    words = ["run", "configs/demo.yaml", "variant=fedavg", *SMALL, "federate.rounds=500", "out=orphans", "jobs=2"]
    process = subprocess.Popen(command(*words), cwd=finished, stderr=subprocess.DEVNULL)
    folder = finished / "orphans" / "demo" / "fedavg-s1" / "federate"
    wait_for(folder / "round_2" / "COMPLETE", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_accelerate_launch_starts_the_same_words_to_the_same_bytes(finished: Path) -> None:
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(Path("launch/accelerate/single.yaml").resolve()),
    ]
    captions = finished / "runs" / "demo" / "full-s1" / "caption"
    for stage in ("pretrain", "federate"):
        words = [
            stage,
            "configs/demo.yaml",
            "variant=full",
            *SMALL,
            "out=launched",
            f"caption.dir={captions}",
            "jobs=2",
        ]
        launched = subprocess.run(
            [sys.executable, *launcher, "-m", "fedscale", *words],
            capture_output=True,
            text=True,
            cwd=finished,
            timeout=300,
        )
        assert launched.returncode == 0, launched.stderr
    theirs, ours = results(finished / "launched" / "demo"), results(finished / "runs" / "demo")
    assert theirs and theirs == {name: ours[name] for name in theirs}
    assert {"full-s1/pretrain/export/model.safetensors", "full-s1/federate/model.safetensors"} <= {*theirs}


def test_sigterm_saves_the_state_and_ends_with_75(finished: Path) -> None:
    words = ["run", "configs/demo.yaml", "variant=fedavg", *SMALL, "federate.rounds=500", "out=stopped", "jobs=2"]
    process = subprocess.Popen(command(*words), cwd=finished, stderr=subprocess.PIPE, text=True)
    folder = finished / "stopped" / "demo" / "fedavg-s1" / "federate"
    wait_for(folder / "round_2" / "COMPLETE", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "the same command resumes it" in said
    assert not (folder / "done.json").exists() and list(folder.glob("round_*"))


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    """Until the file is there. The process must not end before."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        with pytest.raises(subprocess.TimeoutExpired):  # it is still running
            process.wait(0.05)
