"""What a run consists of, what is shared, and what is refused."""

import dataclasses
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscale import files, lock, pipeline, stages
from fedscale.config import Config, overlaid
from fedscale.errors import Stopped, UserError
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.session import Session

VARIANTS = {
    "fedavg": {"pretrain": {"enabled": False}, "align": {"enabled": False}},
    "pretrain": {"align": {"enabled": False}},
    "align": {"pretrain": {"enabled": False}},
    "full": {},
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return overlaid(
        Config(), {"name": "exp", "out": str(tmp_path), "variants": VARIANTS, "seeds": [1, 2], "threads": 1}
    )


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Stages replaced by ones that only note that they ran."""
    ran: list[tuple[str, str, int]] = []

    def recorder(stage: str) -> Callable[..., dict[str, Any]]:
        def run(config: Config, run: RunFolder, session: Session) -> dict[str, Any]:
            if session.stop_requested:
                raise Stopped(stage)
            for name in stages.prerequisites(config, stage):
                assert (run.stage(name) / "done.json").exists()
            ran.append((stage, config.variant, config.seed))
            return {"answer": 42}

        return run

    for stage in stages.MODULES:
        module = types.ModuleType(f"recorded_{stage}")
        module.run = recorder(stage)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(stages.MODULES, stage, module.__name__)
    monkeypatch.setattr(pipeline, "prepare_data", lambda config, session: None)
    return ran


def test_every_shared_stage_is_carried_out_once(config: Config, done: list[tuple[str, str, int]]) -> None:
    pipeline.execute(config, Session())
    counts = {stage: sum(1 for s, _, _ in done if s == stage) for stage in stages.MODULES}
    # One pool is captioned once; each seed pretrains once, federates from scratch and from the pretrained weights,
    # and aligns both.
    assert counts == {"caption": 1, "pretrain": 2, "federate": 4, "align": 4}
    root = Path(config.out) / "exp"
    assert os.path.samefile(root / "full-s1" / "federate", root / "pretrain-s1" / "federate")
    assert not os.path.samefile(root / "full-s1" / "federate", root / "full-s2" / "federate")
    assert not (root / "fedavg-s1" / "pretrain").exists()
    assert files.read_json(root / "full-s2" / "align" / "done.json")["answer"] == 42


def test_a_second_run_finds_everything_complete(config: Config, done: list[tuple[str, str, int]]) -> None:
    pipeline.execute(config, Session())
    done.clear()
    reporter = SilentReporter()
    pipeline.execute(config, Session(reporter))
    assert done == []
    assert reporter.lines[-1].endswith("all stages are complete")


def test_a_new_seed_works_on_what_is_missing_alone(config: Config, done: list[tuple[str, str, int]]) -> None:
    pipeline.execute(config, Session())
    done.clear()
    pipeline.execute(dataclasses.replace(config, seeds=(1, 2, 3)), Session())
    assert {seed for _, _, seed in done} == {3}
    assert "caption" not in {stage for stage, _, _ in done}


def test_one_variant_can_be_chosen_by_name(config: Config) -> None:
    chosen = stages.children(dataclasses.replace(config, variant="align"))
    assert [(c.variant, c.seed, c.pretrain.enabled) for c in chosen] == [("align", 1, False), ("align", 2, False)]
    with pytest.raises(UserError, match="variant=alig: expected one of fedavg, pretrain, align, full"):
        stages.children(dataclasses.replace(config, variant="alig"))


def test_a_config_without_variants_is_one_run_in_its_own_folder(tmp_path: Path) -> None:
    config = overlaid(Config(), {"name": "single", "out": str(tmp_path)})
    assert stages.children(config) == [config]
    assert stages.stage_folder(config, "federate").path == tmp_path / "single" / "federate"


def test_a_single_run_with_another_config_is_refused_by_the_differing_keys(
    tmp_path: Path, done: list[tuple[str, str, int]]
) -> None:
    config = overlaid(Config(), {"name": "single", "out": str(tmp_path), "threads": 1, "pretrain": {"enabled": False}})
    stages.run_stage(config, "federate", Session())
    other = overlaid(config, {"federate": {"lr": 0.5}})
    with pytest.raises(UserError, match=r"another config \(federate.lr was 0.1, is 0.5\)"):
        stages.run_stage(other, "federate", Session())
    # What does not change the result may change.
    stages.run_stage(overlaid(config, {"federate": {"checkpoint_every": 7}, "jobs": 2}), "federate", Session())
    assert len(done) == 1


def test_a_folder_of_another_config_is_refused_before_any_stage_works(
    config: Config, done: list[tuple[str, str, int]]
) -> None:
    pipeline.execute(config, Session())
    done.clear()
    other = overlaid(config, {"federate": {"rounds": 3}})
    with pytest.raises(UserError, match=r"align: holds a result of another config \(federate.rounds was 200"):
        pipeline.execute(other, Session())
    assert done == []


def test_what_a_killed_owner_leaves_is_no_result(tmp_path: Path, done: list[tuple[str, str, int]]) -> None:
    config = overlaid(Config(), {"name": "single", "out": str(tmp_path), "threads": 1, "pretrain": {"enabled": False}})
    folder = stages.stage_folder(config, "federate")
    folder.open()
    folder.lock.write_text("{}")
    other = overlaid(config, {"federate": {"lr": 0.5}})
    refused = pytest.raises(UserError, match=r"another config \(federate.lr was 0.1, is 0.5\)")
    with lock.held(folder.lock, "federate", Session()), refused:
        stages.stage_folder(other, "federate").check()
    folder.lock.write_text("{}")
    stages.run_stage(other, "federate", Session())
    assert done == [("federate", "", 7)]
    assert sorted(path.name for path in folder.path.iterdir()) == ["done.json", "inputs.json"]


def test_a_shared_stage_that_another_run_makes_is_waited_for(
    config: Config, done: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    mine, theirs = (dataclasses.replace(config, variant=name, seeds=(1,)) for name in ("full", "pretrain"))
    (child,), (other,) = stages.children(mine), stages.children(theirs)
    stages.run_stage(child, "caption", Session())
    folder = stages.stage_folder(other, "pretrain")
    begun, reporter = threading.Event(), SilentReporter()

    def make() -> None:
        with lock.held(folder.lock, "pretrain", Session(), work=RunFolder.of(other).identity):
            begun.set()
            while not reporter.lines:
                time.sleep(0.01)
            folder.open()
            folder.close(answer=42)

    thread = threading.Thread(target=make)
    thread.start()
    begun.wait()
    with pytest.raises(UserError, match=r"pretrain-s1/pretrain: .*works on it; wait for its end, or stop it"):
        stages.run_stage(other, "pretrain", Session())
    stages.run_stage(child, "pretrain", Session(reporter))
    thread.join()
    assert [stage for stage, _, _ in done] == ["caption"]
    assert "waiting for its end" in reporter.lines[0] and reporter.lines[1].endswith("complete by now, nothing to do")


def test_what_a_child_run_says_names_the_child(config: Config, done: list[tuple[str, str, int]]) -> None:
    reporter = SilentReporter()
    pipeline.execute(dataclasses.replace(config, variant="fedavg", seeds=(2,)), Session(reporter))
    assert reporter.lines[-1].startswith("(fedavg, seed 2) federate: done in ")


def test_a_stopped_stage_is_not_marked_complete(config: Config, done: list[tuple[str, str, int]]) -> None:
    session = Session()
    session.stop.set()
    with pytest.raises(Stopped):
        pipeline.execute(config, session)
    assert not list(Path(config.out).rglob("done.json"))


def test_the_seconds_of_a_stage_are_those_of_all_its_launches(
    config: Config, done: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 100.0, 107.0, 200.0, 201.5])
    monkeypatch.setattr(stages, "time", types.SimpleNamespace(perf_counter=clock.__next__))
    run = stages.children(dataclasses.replace(config, variant="fedavg", seeds=(1,)))[0]
    stopped, reporter = Session(), SilentReporter()
    stopped.stop.set()
    for _ in range(2):
        with pytest.raises(Stopped):
            stages.run_stage(run, "federate", stopped)
    stages.run_stage(run, "federate", Session(reporter))
    summary = stages.stage_folder(run, "federate").summary()
    assert (summary["seconds"], summary["launches"]) == (13.5, 3)
    assert reporter.lines[-1].endswith("federate: done in 1.5 s, 13.5 s in all")
    assert not list(Path(config.out).rglob("spent.json"))


def test_a_saved_child_config_is_that_child(config: Config, done: list[tuple[str, str, int]]) -> None:
    from fedscale.config import load_config

    pipeline.execute(config, Session())
    saved = load_config([str(Path(config.out) / "exp" / "full-s2" / "config.yaml")])
    (child,) = stages.children(saved)
    assert RunFolder.of(child).path == Path(config.out) / "exp" / "full-s2"
    assert stages.stage_folder(child, "align").complete
