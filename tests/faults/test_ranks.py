"""A table of faults × stages: one of two ranks is lost in the middle, and nothing is lost with it.

All faults of a stage strike before the first is looked into: ranks that wait for a timeout do so at the same time.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.command import Process, carried_out, start
from tests.faults.experiment import TIMEOUT, Experiment
from tests.faults.networks import Network, two_networks, why_not
from tests.faults.whole import assert_whole, names

pytestmark = pytest.mark.slow

BOUND = TIMEOUT + 45  # seconds in which a rank ends by itself, on a machine that is busy with other things
NO_SIGN = "no sign of life for 2 s (killed, frozen, or its host is down)"
NO_STORE = "neither it nor the store on its host answers"
LATE = f"within {TIMEOUT} s; it lives, "
NO_NETWORKS = why_not()

# The fault: who of the two ranks is lost, and what the other says of it.
FAULTS = {
    "late": (1, LATE),
    "frozen": (1, NO_SIGN),
    "cut off": (None, None),  # each says it of the other
    "killed": (1, NO_SIGN),
    "rank 0 killed": (0, NO_STORE),
}


@dataclass(frozen=True)
class Struck:
    """What a fault struck, and when."""

    experiment: Experiment
    ranks: list[Process]
    at: float


@pytest.fixture(scope="module", params=["pretrain", "federate", "align"])
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def struck(stage: str, alone: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Struck]]:
    """Two ranks in the middle of the stage for each fault, struck by it."""
    found: dict[str, Struck] = {}
    with ExitStack() as stack:
        for fault in FAULTS:
            if fault == "cut off" and NO_NETWORKS:
                continue
            networks = stack.enter_context(two_networks(stage)) if fault == "cut off" else ()
            experiment = alone.before(stage, tmp_path_factory.mktemp("struck") / "here")
            ranks = start(experiment.words(stage), experiment.folder, networks=networks)
            for rank in ranks:
                stack.callback(rank.clear_away)
            wait_for_the_middle(experiment, stage, ranks)
            strike(fault, ranks, networks)
            found[fault] = Struck(experiment, ranks, time.time())
        yield found


def wait_for_the_middle(experiment: Experiment, stage: str, ranks: list[Process]) -> None:
    end = time.monotonic() + 120
    while not experiment.under_way(stage):
        assert all(rank.ended(0.01) is None for rank in ranks) and time.monotonic() < end, [rank.said for rank in ranks]


def strike(fault: str, ranks: list[Process], networks: tuple[Network, ...]) -> None:
    if fault == "late":
        ranks[1].is_kept_waiting()
    elif fault == "frozen":
        os.kill(ranks[1].number, signal.SIGSTOP)
    elif fault == "cut off":
        networks[0].cut()
    else:
        os.kill(ranks[0 if fault == "rank 0 killed" else 1].number, signal.SIGKILL)


@pytest.mark.parametrize("fault", [*reversed(FAULTS)])
def test_the_others_name_the_lost_rank_and_the_same_command_ends_as_if_undisturbed(
    fault: str, stage: str, struck: dict[str, Struck], alone: Experiment, tmp_path: Path
) -> None:
    if fault not in struck:
        pytest.skip(NO_NETWORKS)
    case = struck[fault]
    victim, how = FAULTS[fault]
    for number, rank in enumerate(case.ranks):
        if number != victim:
            lost = 1 - number
            assert_ended(rank, case.at, stage, lost, case.ranks[lost].host, how or (NO_STORE, NO_SIGN)[lost])
    if fault == "frozen":  # who wakes up again finds that out, and ends too
        os.kill(case.ranks[1].number, signal.SIGCONT)
        assert_ended(case.ranks[1], time.time(), stage, 0, case.ranks[0].host, NO_STORE)
    for rank in case.ranks:
        rank.clear_away()
    run = case.experiment.folder / "runs"
    assert_whole(run, tmp_path)
    assert not (case.experiment.stage(stage) / "done.json").exists()
    said = carried_out(case.experiment.words(stage), case.experiment.folder)
    assert f"{stage}: resuming after " in said or stage == "align", said
    case.experiment.assert_as(alone, stage)
    assert_whole(run, tmp_path)
    assert names(case.experiment.stage(stage).resolve()) == names(alone.stage(stage).resolve())


def assert_ended(rank: Process, since: float, stage: str, lost: int, host: str, how: str) -> None:
    """With exit code 1, in time, and one line."""
    code = rank.ended(max(1.0, since + BOUND - time.time()))
    assert code == 1, f"exit code {code}: {rank.said}"
    assert rank.log.stat().st_mtime - since < BOUND
    (line,) = (line for line in rank.said.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {stage}: rank {lost} (host {host}) "), line
    assert how in line and line.endswith("start the same command again: it resumes"), line
