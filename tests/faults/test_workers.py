"""Captioning has no collectives: a worker is lost in the middle, the other goes on, each image is captioned once."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.command import Process, carried_out, start
from tests.faults.experiment import Experiment, undisturbed
from tests.faults.networks import two_networks, why_not
from tests.faults.whole import assert_whole

pytestmark = pytest.mark.slow

LEASES = ("caption.leases=true", "caption.heartbeat=0.5")
ENOUGH = 120  # seconds for a few images, on a machine that is busy with other things
NO_NETWORKS = why_not()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A hundred images captioned by one worker after the other, by the demo's small MLLM."""
    few = ("caption.engine=hf", "caption.batch_size=4", "caption.flush_every=4", "caption.max_new_tokens=8")
    return undisturbed(tmp_path_factory.mktemp("captions"), *few, stages=("caption",))


@pytest.fixture
def begin(alone: Experiment, tmp_path: Path) -> Iterator[Callable[..., tuple[Experiment, list[Process]]]]:
    """Starts two workers, which are in the middle of a shard each; they and their networks are gone afterwards."""
    with ExitStack() as stack:

        def begin(*more: str, networks=()) -> tuple[Experiment, list[Process]]:
            experiment = Experiment(alone.before("caption", tmp_path / "here").folder, (*alone.more, *more))
            workers = start(experiment.words("caption"), experiment.folder, networks=networks)
            for worker in workers:
                stack.callback(worker.clear_away)
            wait_until(lambda: len(begun(experiment)) == 2, workers)
            return experiment, workers

        yield begin


def begun(experiment: Experiment) -> list[Path]:
    """Journals of shards with a whole group in them."""
    return [path for path in experiment.stage("caption").glob("*.part.jsonl") if '{"whole"' in path.read_text()]


def wait_until(condition: Callable[[], bool], workers: list[Process]) -> None:
    end = time.monotonic() + ENOUGH
    while not condition():
        assert time.monotonic() < end and all(w.ended(0.005) is None for w in workers), [w.said for w in workers]


def assert_captioned_once(experiment: Experiment, alone: Experiment, scratch: Path) -> None:
    """The bytes of an undisturbed worker; nothing is left lying."""
    folder, expected = experiment.stage("caption"), alone.stage("caption")
    shards = sorted(path.name for path in expected.glob("*.jsonl"))
    assert len(shards) > 3 and sorted(path.name for path in folder.glob("*.jsonl")) == shards
    for name in shards:
        assert (folder / name).read_bytes() == (expected / name).read_bytes()
        marker = Path(name).with_suffix(".done.json")
        facts = [json.loads((where / marker).read_text()) for where in (folder, expected)]
        assert {**facts[0], "seconds": 0} == {**facts[1], "seconds": 0}
    assert not [path for path in folder.iterdir() if ".lease" in path.name or ".part" in path.name]
    assert_whole(experiment.folder / "runs", scratch)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_the_other_worker_takes_the_shard_of_the_lost_one_over(fault, begin, alone, tmp_path):
    experiment, (lost, other) = begin(*LEASES)
    os.kill(lost.number, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    assert other.ended(ENOUGH) == 0, other.said
    assert_captioned_once(experiment, alone, tmp_path)
    assert (experiment.stage("caption") / "done.json").exists()
    if fault == "frozen":  # and wakes up again
        os.kill(lost.number, signal.SIGCONT)
        assert lost.ended(ENOUGH) == 0, lost.said
        assert_captioned_once(experiment, alone, tmp_path)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_without_leases_the_share_of_the_lost_one_waits_for_the_next_start(fault, begin, alone, tmp_path):
    experiment, (lost, other) = begin()
    os.kill(lost.number, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    assert other.ended(ENOUGH) == 0, other.said
    assert "are left to others" in other.said and not (experiment.stage("caption") / "done.json").exists()
    lost.clear_away()
    carried_out(experiment.words("caption"), experiment.folder)
    assert_captioned_once(experiment, alone, tmp_path)


def test_nobody_waits_for_a_late_worker_and_its_shard_stays_its_own(begin, alone, tmp_path):
    experiment, (late, other) = begin(*LEASES)
    late.is_kept_waiting()
    assert other.ended(ENOUGH) == 0, other.said
    assert "1 of 6 shards are left to others" in other.said and late.ended(0) is None
    late.clear_away()
    carried_out(experiment.words("caption"), experiment.folder)
    assert_captioned_once(experiment, alone, tmp_path)


@pytest.mark.skipif(bool(NO_NETWORKS), reason=NO_NETWORKS)
def test_workers_that_are_cut_off_from_one_another_go_on(begin, alone, tmp_path):
    with two_networks("caption") as networks:
        experiment, workers = begin(*LEASES, networks=networks)
        networks[0].cut()
        for worker in workers:
            assert worker.ended(ENOUGH) == 0, worker.said
    assert_captioned_once(experiment, alone, tmp_path)
