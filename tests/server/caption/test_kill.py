"""Exactly once: workers are killed at random points, come back in other numbers, and the result is what it was."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from fedscale.server.caption import job
from fedscale.server.caption.engines import Answer
from fedscale.session import Session
from tests.server.caption.support import Captioned, make_pool, sample

SHARDS, IMAGES, GROUP = 6, 12, 4
KILLS = 20


class SlowEngine:
    """Answers from the request alone, takes its time, and writes down which images it was asked about."""

    in_flight = 1

    def __init__(self, log: Path, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    def generate(self, requests):
        time.sleep(self.seconds)
        with open(self.log, "a") as file:
            file.write("".join(f"{request.key}\n" for request in requests if request.kind == "description"))
        # A text depends on its attempt: one in five is cut short at first, and good at the second try.
        return [
            Answer(f"{request.question} {request.seed}", "length" if request.seed % 5 == 0 else "stop", 4)
            for request in requests
        ]

    def close(self) -> None:
        pass


def _work(captioned: Captioned, log: Path, rank: int, world: int, launch: int, settings: dict) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": str(launch)}
    job.make_engine = lambda config: SlowEngine(log, 0.01)
    captioned.caption(Session(), engine="hf", flush_every=GROUP, max_attempts=50, **settings)


def _launch(captioned: Captioned, log: Path, world: int, launch: int, settings: dict) -> list:
    fork = multiprocessing.get_context("fork")  # torch is imported already: the kills hit the work, not the start
    workers = [
        fork.Process(target=_work, args=(captioned, log, rank, world, launch, settings)) for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    return workers


@pytest.mark.parametrize("settings", [{}, {"leases": True, "heartbeat": 0.02}], ids=["by rank", "by lease"])
def test_killed_workers_lose_nothing_and_double_nothing(tmp_path, settings):
    samples = [[sample(n) for n in range(IMAGES * s, IMAGES * (s + 1))] for s in range(SHARDS)]
    samples[2][5] = sample(29, b"no image")
    pool = make_pool(tmp_path / "shards", samples)
    undisturbed, disturbed = Captioned(pool, tmp_path / "one"), Captioned(pool, tmp_path / "many")
    log, dice = tmp_path / "log", random.Random(3)
    for number, worker in enumerate(_launch(undisturbed, tmp_path / "log of one", 1, 0, {})):
        worker.join()
        assert worker.exitcode == 0, number

    kills = launch = 0
    while kills < KILLS:
        launch += 1
        world = 1 + launch % 3
        workers = _launch(disturbed, log, world, launch, settings)
        time.sleep(dice.uniform(0.01, 0.12))
        for worker in dice.sample(workers, dice.randint(1, world)):
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
                kills += 1
        for worker in workers:  # the survivors finish their share
            if dice.random() < 0.3 and worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        assert launch < 200, "the work was over before the kills"
        if all((disturbed.folder / f"{n:05d}.done.json").exists() for n in range(SHARDS)):
            victim = dice.randrange(SHARDS)  # give the next workers something to do
            (disturbed.folder / f"{victim:05d}.done.json").unlink()
    for worker in _launch(disturbed, log, 1, launch + 1, {}):
        worker.join()
        assert worker.exitcode == 0

    for number in range(SHARDS):
        one, many = (side.folder / f"{number:05d}.jsonl" for side in (undisturbed, disturbed))
        assert many.read_bytes() == one.read_bytes()
        keys = [json.loads(line)["key"] for line in many.read_text().splitlines()]
        assert keys == [s.key for s in samples[number]], "no row lost, none doubled"
        first, second = (json.loads(path.with_suffix("").with_suffix(".done.json").read_text()) for path in (one, many))
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert not list(disturbed.folder.glob("*.part.jsonl"))
    assert not list(disturbed.folder.glob("*.lease"))


def test_work_done_again_is_bounded_by_the_flush_interval(tmp_path):
    pool = make_pool(tmp_path / "shards", [[sample(n) for n in range(40)]])
    captioned, log = Captioned(pool, tmp_path / "run"), tmp_path / "log"
    dice, kills = random.Random(5), 0
    for launch in range(8):
        (worker,) = _launch(captioned, log, 1, launch, {})
        time.sleep(dice.uniform(0.05, 0.15))
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGKILL)
            kills += 1
        worker.join()
    (worker,) = _launch(captioned, log, 1, 99, {"retry_temperatures": (0.4, 0.8)})
    worker.join()
    assert worker.exitcode == 0 and kills >= 2
    rows = {json.loads(line)["key"]: json.loads(line) for line in (captioned.folder / "00000.jsonl").open()}
    asked = log.read_text().split()
    undisturbed = sum(row["attempts"]["description"] for row in rows.values())
    # Retries of a group that a kill cut short are asked again as well.
    assert len(asked) - undisturbed <= kills * GROUP * 3
    assert len(rows) == 40


def test_workers_of_one_launch_share_the_shards_evenly(tmp_path):
    pool = make_pool(tmp_path / "shards", [[sample(n) for n in range(4 * s, 4 * s + 4)] for s in range(6)])
    captioned = Captioned(pool, tmp_path / "run")
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_work, args=(captioned, logs[rank], rank, 2, 7, {})) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    asked = [set(log.read_text().split()) for log in logs]
    assert [len(keys) for keys in asked] == [12, 12] and not asked[0] & asked[1]
