"""Backends are chosen by trial, kept, fit into the memory, and give way where they cannot run."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from fedscale.config import overlaid
from fedscale.config.schema import Config
from fedscale.distributed.mesh import Mesh
from fedscale.errors import UserError
from fedscale.federated.backends import OutOfMemory, RoundStart
from fedscale.federated.backends.choose import ALIKE, Choice, _time_lanes
from fedscale.federated.backends.trainer import LaneTrainer
from fedscale.federated.backends.trials import Rehearsal
from fedscale.federated.checkpoint import newest_round
from fedscale.federated.rounds import _Stage
from fedscale.progress import SilentReporter
from fedscale.session import Session
from tests.federated.engine_support import make_engine, settings, trained


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch):
    """Make more than so many lanes run out of memory in the middle of their training."""

    def limit(lanes: int) -> None:
        step = LaneTrainer.step

        def limited(self, staged, view, number, size):
            if self.state.lanes > lanes and number == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step(self, staged, view, number, size)

        monkeypatch.setattr(LaneTrainer, "step", limited)

    return limit


def test_auto_picks_what_it_measured_fastest_and_a_second_run_finds_it(tmp_path: Path) -> None:
    said: list[str] = []
    engine = make_engine(settings(backend="auto"), folder=tmp_path, say=said.append)
    record = json.loads((tmp_path / "backend.json").read_text())
    chosen = f"{record['backend']}:{record['lanes']}"
    assert record["seconds"][chosen] <= ALIKE * min(record["seconds"].values())
    assert {"loop:1", "batched:2"} <= {*record["seconds"]}
    assert (engine.backend.name, engine.backend.lanes) == (record["backend"], record["lanes"])
    assert "client steps/s" in said[-1]
    again = make_engine(settings(backend="auto"), folder=tmp_path / "other")
    assert json.loads((tmp_path / "other" / "backend.json").read_text())["seconds"] == record["seconds"]
    assert again.backend.lanes == engine.backend.lanes


def test_every_rank_has_a_group_of_what_auto_picks(tmp_path: Path) -> None:
    make_engine(settings(backend="auto"), mesh=Mesh(world=3), folder=tmp_path)
    record = json.loads((tmp_path / "backend.json").read_text())
    assert {"loop:1", "batched:2"} == {*record["seconds"]}, "six clients on three ranks: two each"


def test_another_processor_makes_a_choice_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("one", "one", "another"):
        monkeypatch.setattr("fedscale.federated.backends.choose.device_name", lambda device, name=name: name)
        make_engine(settings(backend="auto"))
    assert len(list((tmp_path / "cache" / "fedscale").glob("backend-*.json"))) == 2


def choice_where(monkeypatch: pytest.MonkeyPatch, first: dict[int, float], final: dict[int, float]) -> Choice:
    """What `auto` makes of six clients when lanes take `first` ms by themselves and `final` in whole rounds."""

    def seconds(self, backend, clients, steps):
        whole = clients == 6 and (backend.lanes < 6 or turns[backend.lanes] >= 5)
        turns[backend.lanes] += 1
        return (final if whole else first)[backend.lanes] / 1000

    turns: Counter[int] = Counter()
    monkeypatch.setattr(Rehearsal, "seconds", seconds)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    engine = make_engine(settings(backend="auto"))
    return Choice(engine.backend.name, engine.backend.lanes, {})


def test_the_finals_overrule_the_first_trials_and_within_the_noise_more_lanes_win(monkeypatch) -> None:
    first = {1: 1.0, 2: 0.50, 3: 0.55, 6: 0.60}
    assert choice_where(monkeypatch, first, {2: 0.60, 3: 0.50, 6: 0.56}).lanes == 3
    assert choice_where(monkeypatch, first, {2: 0.60, 3: 0.50, 6: 0.51}).lanes == 6
    assert choice_where(monkeypatch, {**first, 3: 0.7}, {2: 0.60, 6: 0.65}).lanes == 2


class Stopwatch:
    """Trials whose seconds are given: what `_time_lanes` asks of them."""

    def __init__(self, most: int, seconds: Callable[[int], float], fitting: int = 10**6) -> None:
        self.workshop = SimpleNamespace(round_lanes=most, fits=lambda lanes: lanes <= fitting)
        self.seconds: dict[str, float] = {"loop:1": 1.0}
        self._seconds = seconds

    def time(self, backend: str, lanes: int) -> float:
        assert f"{backend}:{lanes}" not in self.seconds, "timed twice"
        self.seconds[f"{backend}:{lanes}"] = self._seconds(lanes)
        return self._seconds(lanes)

    @property
    def lanes(self) -> list[int]:
        return [int(name.split(":")[1]) for name in self.seconds][1:]


@pytest.mark.parametrize(
    ("most", "best", "tried"),
    [
        (50, 20, [2, 4, 7, 13, 25, 50, 17]),  # in 25, 13, 8, 4, 2 groups and one; then 3, beside the best
        (8, 8, [2, 4, 8]),
        (7, 4, [2, 4, 7, 3]),
        (1000, 100, [2, 4, 8, 16, 32, 63, 125, 1000, 84]),
        (1000, 8, [2, 4, 8, 16, 32, 6, 11]),  # 16 and 32 are slower: no more are tried
    ],
)
def test_lanes_are_tried_as_few_as_make_so_many_groups(most: int, best: int, tried: list[int]) -> None:
    trials = Stopwatch(most, lambda lanes: 0.1 + abs(math.log(lanes / best)))
    _time_lanes(trials, "batched")
    assert trials.lanes == tried


def test_lanes_that_do_not_fit_are_not_tried() -> None:
    trials = Stopwatch(50, lambda lanes: 1 / lanes, fitting=20)
    _time_lanes(trials, "batched")
    assert trials.lanes == [2, 4, 7, 13, 9, 17]


def test_a_trial_cut_short_charges_filling_and_summing_in_a_rounds_proportion(monkeypatch) -> None:
    engine = make_engine(settings(local_epochs=5))
    clock = [0.0]
    monkeypatch.setattr("fedscale.federated.backends.trials.time.process_time", lambda: clock[0])

    class Slow:
        name, lanes = "slow", 2

        def train(self, start, plan):
            clock[0] += 7  # filling the lanes
            start.begun()
            clock[0] += plan.total_steps  # a second a step
            yield plan

    def absorb(trained):
        clock[0] += 3

    cohort = engine.cohort(1)
    rehearsal = Rehearsal(
        cohort, lambda c: engine.plan(1, c), absorb, RoundStart(engine.server.vector), engine.mesh.device
    )
    steps = engine.plan(1, cohort[:4]).total_steps
    assert rehearsal.seconds(Slow(), 4, 1) == rehearsal.seconds(Slow(), 4, 1000) == 1 + 2 * 10 / steps


def test_a_run_goes_on_with_the_backend_it_began_with(tmp_path: Path) -> None:
    make_engine(settings(backend="auto"), folder=tmp_path)
    record = json.loads((tmp_path / "backend.json").read_text()) | {"backend": "batched", "lanes": 3}
    (tmp_path / "backend.json").write_text(json.dumps(record))
    engine = make_engine(settings(backend="auto"), folder=tmp_path)
    assert (engine.backend.name, engine.backend.lanes) == ("batched", 3)


def test_exact_mode_refuses_other_threads_than_it_began_with(tmp_path: Path) -> None:
    options = settings(aggregate={"exact": True})
    make_engine(options, folder=tmp_path)
    record = json.loads((tmp_path / "backend.json").read_text()) | {"threads": 7}
    (tmp_path / "backend.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"other arithmetic \(threads was 7, is 1\)"):
        make_engine(options, folder=tmp_path)


def test_exact_mode_refuses_another_processor_than_it_began_with(tmp_path: Path, monkeypatch) -> None:
    options = settings(aggregate={"exact": True})
    make_engine(options, folder=tmp_path)
    monkeypatch.setattr("fedscale.federated.setup.device_name", lambda device: "another")
    with pytest.raises(UserError, match=r"other arithmetic \(device was .+, is another\)"):
        make_engine(options, folder=tmp_path)


def test_a_method_finds_the_model_where_it_will_be_trained(monkeypatch) -> None:
    found: list[torch.device] = []

    def check_fit(method, model, *rest):
        found.append(next(model.parameters()).device)
        raise UserError("enough")

    monkeypatch.setattr("fedscale.federated.setup.check_fit", check_fit)
    with pytest.raises(UserError, match="enough"):
        make_engine(settings(), "resnet8", mesh=Mesh(device=torch.device("meta")))
    assert found[0].type == "meta", "of whose memory it asks how much is free"


@pytest.mark.parametrize("federate", [{"backend": "auto"}, {"backend": "batched"}])
def test_exact_mode_wants_backend_and_lanes_pinned(federate: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"federate\.(backend|lanes)=.* with aggregate.exact"):
        overlaid(Config(), {"federate": {"aggregate": {"exact": True}, **federate}})


def test_out_of_memory_halves_the_lanes_and_loses_no_client(memory_for) -> None:
    reference = trained(make_engine(settings()))
    memory_for(2)
    engine = make_engine(settings(backend="batched", lanes=6))
    assert (trained(engine) - reference).abs().max() < 1e-9
    assert engine.backend.working_lanes == 1  # 6, 3, 1
    assert engine.backend.lanes == 6  # groups, which placement and results of the plan rest on, stay


def test_out_of_memory_in_exact_mode_ends_the_run_and_with_one_lane_too(memory_for) -> None:
    memory_for(2)
    with pytest.raises(OutOfMemory, match=r"federate\.lanes=4: out of memory"):
        make_engine(settings(backend="batched", lanes=4, aggregate={"exact": True})).round(1)
    memory_for(0)
    with pytest.raises(UserError, match=r"federate\.batch_size=4: out of memory with one client"):
        make_engine(settings(backend="batched", lanes=2)).round(1)


def test_out_of_memory_in_exact_mode_saves_the_rounds_before_it(memory_for, tmp_path: Path) -> None:
    config = settings(backend="batched", lanes=4, aggregate={"exact": True}, checkpoint_every=50)
    engine = make_engine(config)
    stage = _Stage(config, engine, {}, MagicMock(), tmp_path, Session(), SilentReporter(), None)
    stage._round(1)
    stage._round(2)
    before = engine.server.vector.clone()
    memory_for(2)
    with pytest.raises(UserError, match=r"federate\.lanes=4: out of memory; .*; 2 of 3 are saved"):
        stage._round(3)
    found = newest_round(tmp_path, engine.host.whole_layout.describe())
    assert found is not None and found[0] == 2 and torch.equal(found[1]["vector"], before)


def test_lanes_that_do_not_fit_say_how_many_would() -> None:
    with pytest.raises(UserError, match=r"lanes=6: needs .* GiB, expected at most .*at most federate\.lanes=\d+"):
        make_engine(settings(backend="batched", lanes=6, memory=1e-8))
    with pytest.raises(UserError, match=r"lanes=1: needs .* GiB, expected at most"):
        make_engine(settings(backend="batched", memory=1e-12))


def test_a_model_that_only_the_loop_can_run_is_run_and_said() -> None:
    said: list[str] = []
    engine = make_engine(settings(backend="batched", lanes=4), "softened", say=said.append)
    assert engine.backend.name == "loop"
    assert any("no other backend than loop can run this model" in line for line in said)
    assert torch.isfinite(trained(engine)).all()


@pytest.mark.slow
def test_compiled_steps_give_what_the_loop_gives() -> None:
    reference = trained(make_engine(settings(momentum=0.5), "dropout"))
    compiled = make_engine(settings(momentum=0.5, backend="graph", lanes=3), "dropout")
    assert compiled.backend.name == "graph"
    assert (trained(compiled) - reference).abs().max() < 1e-9
