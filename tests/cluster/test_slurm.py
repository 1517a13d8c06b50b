"""The demo's stages on a Slurm cluster of two nodes: killed, preempted, each robbed of a node, the same in the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedscale import api
from tests.cluster.slurm import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = [
    "configs/demo.yaml", "variant=full", "seeds=[1]", "threads=1", "model.norm=group", "caption.kinds=[description]",
    "caption.max_images=1000", "caption.batch_size=64", "caption.flush_every=64", "pretrain.lr=0.001",
    "pretrain.epochs=1", "pretrain.batch_size=96", "pretrain.probe.enabled=false",
    "federate.rounds=5", "federate.local_epochs=1", "federate.aggregate.exact=true",
    "align.epochs=2", "align.images_per_class=8",
]  # fmt: skip
UNDER_WAY = ("PENDING", "RUNNING", "COMPLETING")
STAGES = ("prepare", "caption", "pretrain", "federate", "align", "report")


@dataclass(frozen=True)
class Disturbed:
    """The pipeline's jobs by stage, after all that was done to them."""

    folder: Path
    jobs: dict[str, str]
    slurm: Slurm

    def stage(self, name: str) -> Path:
        return self.folder / "runs" / "demo" / "full-s1" / name

    def log(self, stage: str) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "runs/demo/slurm").glob(f"{stage}-*.log")))


def fedscale(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedscale", *words], cwd=folder, capture_output=True, text=True, timeout=120
    )


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def processes(**variables: str) -> list[int]:
    """Process ids of `python -m fedscale` that were started with these variables."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, given = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            if b"python" in words[0] and b"fedscale" in words[1:4] and wanted <= set(given):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.fixture(scope="module")
def disturbed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    folder = tmp_path_factory.mktemp("slurm") / "of two nodes"
    folder.mkdir()
    asked = ["--nodes", "2", "--array", "2", "--throttle", "2", "--time", "10:00", "--partition", "main", "--json"]
    done = fedscale(folder, "submit", *WORDS, *asked)
    assert done.returncode == 0, done.stderr
    run = Disturbed(folder, {row["stage"]: row["job"] for row in json.loads(done.stdout)}, slurm)
    _take_a_node_from_captioning(run)
    _kill_a_captioning_task(run)
    _preempt_pretraining(run)
    _take_a_node(run, "pretrain", restarts=1)
    _preempt_federation(run)
    _take_a_node(run, "federate", restarts=1)
    _take_a_node(run, "align", restarts=0)
    slurm.until(lambda: slurm.state(run.jobs["report"]) not in UNDER_WAY, "the report ends")
    yield run


def _take_a_node_from_captioning(run: Disturbed) -> None:
    job, begun = run.jobs["caption"], run.stage("caption")
    run.slurm.until(lambda: any(path.stat().st_size for path in begun.glob("*.part*")), "captions are kept", job)
    node = _task(run, "1")["NodeList"]
    run.slurm.set_node(node, "DOWN")
    run.slurm.until(lambda: _task(run, "1")["Restarts"] == "1", "its task waits for another start", job)
    run.slurm.set_node(node, "RESUME")


def _kill_a_captioning_task(run: Disturbed) -> None:
    job = run.jobs["caption"]

    def working() -> list[int]:
        again = _task(run, "1")["JobState"] == "RUNNING"
        return processes(SLURM_ARRAY_JOB_ID=job, SLURM_ARRAY_TASK_ID="1") if again else []

    run.slurm.until(working, "task 1 captions again", job)
    for number in working():
        os.kill(number, signal.SIGKILL)


def _task(run: Disturbed, number: str) -> dict[str, str]:
    """What Slurm says of a task of captioning."""
    (found,) = [task for task in run.slurm.tasks(run.jobs["caption"]) if task["ArrayTaskId"] == number]
    return found


def _preempt_pretraining(run: Disturbed) -> None:
    metrics = run.stage("pretrain") / "metrics.jsonl"
    run.slurm.until(lambda: lines(metrics) >= 2, "two steps of pretraining", run.jobs["pretrain"])
    run.slurm.run("scancel", "--signal=TERM", "--batch", run.jobs["pretrain"])


def _preempt_federation(run: Disturbed) -> None:
    metrics = run.stage("federate") / "metrics.jsonl"
    run.slurm.until(lambda: lines(metrics) >= 1, "a round of federation", run.jobs["federate"])
    run.slurm.run("scancel", "--signal=TERM", run.jobs["federate"])  # the ranks are told, and not the job's script


def _take_a_node(run: Disturbed, stage: str, restarts: int) -> None:
    job = run.jobs[stage]

    def working() -> bool:
        told = run.slurm.job(job)
        started = (told["JobState"], told["Restarts"]) == ("RUNNING", str(restarts))
        return started and len(processes(SLURM_JOB_ID=job)) >= 2

    run.slurm.until(working, f"{stage} begins on two nodes", job)
    run.slurm.set_node("node2", "DOWN")
    run.slurm.until(lambda: run.slurm.state(job) == "PENDING", f"{stage} waits for its node", job)
    run.slurm.set_node("node2", "RESUME")


def test_every_stage_ends_well(disturbed: Disturbed) -> None:
    assert tuple(disturbed.jobs) == STAGES
    for stage, job in disturbed.jobs.items():
        for task in disturbed.slurm.tasks(job):
            assert (task["JobState"], task["ExitCode"]) == ("COMPLETED", "0:0"), f"{stage}\n{disturbed.log(stage)}"
    (row,) = json.loads((disturbed.folder / "runs/demo/report/summary.json").read_text())[:1]
    assert row["variant"] == "full" and row["all"] > 0


def test_the_killed_task_is_started_again_and_captions_what_is_left(disturbed: Disturbed) -> None:
    restarts = {task["ArrayTaskId"]: task["Restarts"] for task in disturbed.slurm.tasks(disturbed.jobs["caption"])}
    assert restarts == {"0": "1", "1": "2"}  # both robbed of their node, which Slurm fills first; task 1 then killed
    assert "ended with 137 and is started again" in disturbed.log("caption")
    written = "".join(path.read_text() for path in disturbed.stage("caption").glob("*.jsonl"))
    rows = [json.loads(line) for line in written.splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 1000 and {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("stage", ["pretrain", "federate"])
def test_a_preempted_stage_saves_its_state_and_goes_on(disturbed: Disturbed, stage: str) -> None:
    assert disturbed.slurm.job(disturbed.jobs[stage])["Restarts"] == "2"  # and once for its node
    log = disturbed.log(stage)
    assert f"{stage}: stopped " in log and f"{stage}: resuming after " in log, log


@pytest.mark.parametrize(("stage", "starts"), [("pretrain", 3), ("federate", 3), ("align", 2)])
def test_a_job_that_loses_a_node_is_started_again(disturbed: Disturbed, stage: str, starts: int) -> None:
    assert disturbed.slurm.job(disturbed.jobs[stage])["Restarts"] == str(starts - 1)
    assert f", start {starts}, on node[1-2]" in disturbed.log(stage)


def test_the_result_is_that_of_one_undisturbed_process(
    disturbed: Disturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Federation bit for bit, from the same weights; the others but for rounding."""
    monkeypatch.chdir(tmp_path)
    shards = f"data.dir={next((disturbed.folder / 'shards').glob('shapes-*'))}"
    for stage, before, tolerance in (
        ("pretrain", ["caption"], 1e-5), ("federate", ["caption", "pretrain"], 0.0),
        ("align", ["caption", "pretrain", "federate"], 1e-5),
    ):  # fmt: skip
        config = api.load_config(*WORDS, shards, f"name={stage}")
        for done in before:
            (held,) = (disturbed.folder / "runs/demo/shared").glob(f"{done}-*")
            shutil.copytree(held, tmp_path / "runs" / stage / "shared" / held.name)
            api.stage(config, done)  # complete: nothing but the run's link to it is made
        api.stage(config, stage)
        weights = api.WEIGHTS[stage]
        alone = load_file(tmp_path / "runs" / stage / "full-s1" / stage / weights)
        on_slurm = load_file(disturbed.stage(stage) / weights)
        assert alone.keys() == on_slurm.keys()
        for name, weight in alone.items():
            torch.testing.assert_close(on_slurm[name], weight, rtol=0, atol=tolerance)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "runs/pretrain/full-s1/pretrain", disturbed.stage("pretrain"))
    ]
    assert len(losses[0]) == 10 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_run_folder_tells_what_was_submitted(disturbed: Disturbed) -> None:
    folder = disturbed.folder / "runs/demo/slurm"
    told = json.loads((folder / "pipeline.json").read_text())
    assert told["commit"].startswith(("commit ", "installed")) and torch.__version__.startswith(
        told["versions"]["torch"]
    )
    assert told["request"]["nodes"] == 2 and (folder / told["config"]).exists()
    (line,) = (folder / "submitted.jsonl").read_text().splitlines()
    assert [job["job"] for job in json.loads(line)["jobs"]] == list(disturbed.jobs.values())
    assert told["commit"] in disturbed.log("federate") and told["config"] in disturbed.log("federate")


def test_a_task_a_rank_reads_copies_on_its_nodes_disk(
    disturbed: Disturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (shards,) = (disturbed.folder / "shards").glob("shapes-*")
    words = [*WORDS, "variant=fedavg", "federate.rounds=1", f"data.dir={shards}"]
    disk = tmp_path / "the node's disk"
    asked = ["--stage", "federate", "--launcher", "srun", "--nodes", "2", "--stage-in", str(disk), "--json"]
    done = fedscale(tmp_path, "submit", *words, *asked)
    assert done.returncode == 0, done.stderr
    ((stage, job),) = [(row["stage"], row["job"]) for row in json.loads(done.stdout)]
    config = api.load_config(*words, "name=alone")
    api.stage(config, "federate")
    disturbed.slurm.until(lambda: disturbed.slurm.state(job) == "COMPLETED", "federation", job)
    log = "".join(path.read_text() for path in (tmp_path / "runs/demo/slurm").glob("federate-*.log"))
    assert stage == "federate" and f"copying {shards} to {disk / shards.name}" in log
    alone, on_slurm = (tmp_path / f"runs/{name}/fedavg-s1/federate/model.safetensors" for name in ("alone", "demo"))
    assert alone.read_bytes() == on_slurm.read_bytes()


def test_all_ranks_are_started_again_when_one_is_killed(
    disturbed: Disturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torchrun, on both nodes, without another job; from the last round, to the same bits."""
    monkeypatch.chdir(tmp_path)
    (shards,) = (disturbed.folder / "shards").glob("shapes-*")
    words = [*WORDS, "variant=fedavg", f"data.dir={shards}"]
    done = fedscale(tmp_path, "submit", *words, "--stage", "federate", "--nodes", "2", "--json")
    (job,) = [row["job"] for row in json.loads(done.stdout)]
    run = tmp_path / "runs/demo/fedavg-s1/federate"
    disturbed.slurm.until(lambda: lines(run / "metrics.jsonl") >= 2, "two rounds", job)
    os.kill(processes(SLURM_JOB_ID=job, RANK="1")[0], signal.SIGKILL)
    config = api.load_config(*words, "name=alone")
    api.stage(config, "federate")
    disturbed.slurm.until(lambda: disturbed.slurm.state(job) == "COMPLETED", "federation", job)
    assert disturbed.slurm.job(job)["Restarts"] == "0"
    log = "".join(path.read_text() for path in (tmp_path / "runs/demo/slurm").glob("federate-*.log"))
    assert "error: federate: rank 1 (host " in log and "federate: resuming after round " in log
    alone = tmp_path / "runs/alone/fedavg-s1/federate/model.safetensors"
    assert alone.read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_mistake_in_the_config_ends_the_job_and_is_not_tried_again(disturbed: Disturbed, tmp_path: Path) -> None:
    """Two nodes, of which the second is ended because of the first: the code is the mistake's all the same."""
    (shards,) = (disturbed.folder / "shards").glob("shapes-*")
    asked = ["--stage", "federate", "--nodes", "2", "--restarts", "0", "--json"]
    done = fedscale(tmp_path, "submit", *WORDS, f"data.dir={shards}", *asked)  # without any pretraining before
    (job,) = [row["job"] for row in json.loads(done.stdout)]
    disturbed.slurm.until(lambda: disturbed.slurm.state(job) not in UNDER_WAY, "the job ends")
    found = disturbed.slurm.job(job)
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "2:0", "0")
    log = "".join(path.read_text() for path in (tmp_path / "runs/demo/slurm").glob("federate-*.log"))
    assert "run `fedscale pretrain` first" in log
