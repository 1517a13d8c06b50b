"""Backends are chosen by trial, kept, fit into the memory, and give way where they cannot run."""

import json
from pathlib import Path

import pytest
import torch

from fedscale.config import overlaid
from fedscale.config.schema import Config
from fedscale.errors import UserError
from fedscale.federated.backends import OutOfMemory
from fedscale.federated.backends.trainer import LaneTrainer
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
    best = min(record["seconds"], key=record["seconds"].get)
    assert best == f"{record['backend']}:{record['lanes']}"
    assert {"loop:1", "batched:2"} <= {*record["seconds"]}
    assert (engine.backend.name, engine.backend.lanes) == (record["backend"], record["lanes"])
    assert "client steps/s" in said[-1]
    again = make_engine(settings(backend="auto"), folder=tmp_path / "other")
    assert json.loads((tmp_path / "other" / "backend.json").read_text())["seconds"] == record["seconds"]
    assert again.backend.lanes == engine.backend.lanes


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


def test_lanes_that_do_not_fit_say_how_many_would() -> None:
    with pytest.raises(UserError, match=r"lanes=6: needs .* GiB, expected at most .*at most federate\.lanes=\d+"):
        make_engine(settings(backend="batched", lanes=6, memory=1e-8))


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
