"""Sweeps carried out: tuned, resumed, shared among workers. The stages are stand-ins, all else is real."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscale import files, lock
from fedscale.config import Config, load_config
from fedscale.errors import Stopped, UserError
from fedscale.lease import Leases
from fedscale.runs import RunFolder
from fedscale.session import Session
from fedscale.stages import children, result_folder
from fedscale.sweep import Sweep, execute, execute_one, runs
from fedscale.sweep.results import describe
from fedscale.sweep.status import complete, lease_name, listed
from fedscale.sweep.work import _work

Opened = Callable[..., Sweep]


def states(sweep: Sweep) -> list[str]:
    return [row["state"] for row in listed(sweep, runs(sweep))]


def test_the_best_on_validation_is_used_for_the_final_runs(opened: Opened, stages_ran) -> None:
    sweep = opened()
    assert execute(sweep, Session()) == []
    final = [run for run in runs(sweep) if run.kind == "final"]
    assert len(final) == 12 and all(complete(run) for run in runs(sweep))
    assert {run.config.federate.lr for run in final} == {0.3}
    assert {run.config.federate.options["mu"] for run in final if run.method == "fedprox"} == {0.1}
    assert {run.config.align.lr for run in final if run.method == "full"} == {0.01}, "of equal scores the first"
    told = files.read_json(sweep.folder / "tuning.json")
    assert (told["budget"], told["rounds"], told["split"]) == (9, 2, "validation")
    tried = told["methods"]["fedprox"]["candidates"]
    assert [row["score"] for row in tried] == pytest.approx([49.8, 49.9, 50.0, 50.1])
    assert told["methods"]["fedprox"]["chosen"] == tried[3]["values"]
    assert "| fedprox | federate.lr 0.3, align.lr 0.01, federate.options.mu 0.1 | 50.10 | chosen |" in (
        sweep.folder / "tuning.md"
    ).read_text(encoding="utf-8")


def test_tuning_and_final_runs_share_what_is_equal(opened: Opened, stages_ran) -> None:
    execute(opened("methods=[full]"), Session())
    assert stages_ran.count("caption") == 2, "once for each imbalance factor, whose pools differ"
    assert stages_ran.count("pretrain", "tune/") == 1 and stages_ran.count("pretrain", "full") == 4
    assert stages_ran.count("federate", "tune/") == 2, "one a learning rate, for two alignments each"


def test_a_stopped_sweep_goes_on_where_it_was(opened: Opened, stages_ran) -> None:
    sweep, session = opened("methods=[fedavg]"), Session()

    def stop_third(stage: str, config: Config, session: Session) -> None:
        if len(stages_ran.ran) == 3:
            session.stop.set()

    stages_ran.before = stop_third
    with pytest.raises(Stopped):
        execute(sweep, session)
    assert states(sweep) == ["done", "done", "done", "begun", "open", "open"]
    assert list((sweep.folder / "locks").iterdir()) == [], "nothing is left that others would wait for"
    stages_ran.before = lambda stage, config, session: None
    execute(sweep, Session())
    assert len(stages_ran.ran) == 6 and set(states(sweep)) == {"done"}


def test_workers_at_once_do_every_run_once(opened: Opened, stages_ran) -> None:
    sweeps = [opened() for _ in range(3)]
    failures: list[BaseException] = []

    def work(sweep: Sweep) -> None:
        try:
            _work(sweep, Session())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(sweep,)) for sweep in sweeps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(stages_ran.ran) == len(set(stages_ran.ran)), "nothing twice"
    assert set(states(sweeps[0])) == {"done"}


def test_one_run_alone_waits_for_its_tuning_and_is_refused_while_another_has_it(opened: Opened, stages_ran) -> None:
    sweep = opened("methods=[fedavg]")
    with pytest.raises(UserError, match=r"--only 2: fedavg-if20-s1 waits for the tuning of fedavg \(runs 0 to 1\)"):
        execute_one(sweep, 2, Session())
    with pytest.raises(UserError, match="--only 6: expected a run from 0 to 5"):
        execute_one(sweep, 6, Session())
    other = Leases(sweep.folder / "locks", 0.02)
    with other.claim(lease_name(sweep.tuning[0])) as lease:
        assert states(sweep)[0] == "running"
        with pytest.raises(UserError, match=rf"being worked on by {lease._owner}"):
            execute_one(sweep, 0, Session())
    for number in (0, 1, 2):
        execute_one(sweep, number, Session())
    assert states(sweep) == ["done", "done", "done", "open", "open", "open"]
    count = len(stages_ran.ran)
    execute_one(sweep, 2, Session())
    assert len(stages_ran.ran) == count == 3


def test_a_dead_workers_run_is_taken_over(opened: Opened, stages_ran) -> None:
    sweep = opened("methods=[fedavg]")
    Leases(sweep.folder / "locks", 1000).claim(lease_name(sweep.tuning[0]))  # and never beats
    execute_one(sweep, 0, Session())
    assert states(sweep)[0] == "done"


def test_a_run_is_taken_over_once_its_frozen_worker_has_let_go_of_the_folder(
    opened: Opened, stages_ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    sweep = opened("methods=[fedavg]")
    run, session, held = sweep.tuning[0], Session(), threading.Event()
    folder = result_folder(run.config, "federate")

    def frozen() -> None:
        with lock.held(folder.lock, folder.path, Session(), work=RunFolder.of(run.config).identity):
            held.set()
            while not any("waiting for its end" in line for line in session.reporter.lines):
                time.sleep(0.01)
            assert not stages_ran.ran, "two never write one folder"

    thread = threading.Thread(target=frozen)
    thread.start()
    held.wait()
    execute_one(sweep, 0, session)
    thread.join()
    assert states(sweep)[0] == "done" and len(stages_ran.ran) == 1


def test_a_worker_taken_for_dead_stops_at_its_next_step(opened: Opened, stages_ran) -> None:
    sweep = opened("methods=[fedavg]")
    path = sweep.folder / "locks" / f"{lease_name(sweep.tuning[0])}.lease"
    stopped = threading.Event()

    def thaw(stage: str, config: Config, session: Session) -> None:
        for _ in range(500):
            if session.stop_requested:
                stopped.set()
                return
            files.write_text(path, '{"owner": "other", "beat": 0}')  # again, should a beat have come in between
            threading.Event().wait(0.01)

    stages_ran.before = thaw
    with pytest.raises(Stopped):
        execute_one(sweep, 0, Session())
    assert stopped.is_set() and "other" in path.read_text(), "and leaves the lease to its new owner"


def test_what_diverges_is_no_choice_and_does_not_end_the_sweep(opened: Opened, stages_ran) -> None:
    sweep = opened("methods=[fedavg]", "tune.grid.federate.lr=[3.0,0.1]")
    assert execute(sweep, Session()) == []
    rows = files.read_json(sweep.folder / "tuning.json")["methods"]["fedavg"]["candidates"]
    assert rows[0]["state"].startswith("diverged: federate: every client") and rows[0]["score"] is None
    assert {run.config.federate.lr for run in runs(sweep) if run.kind == "final"} == {0.1}
    hopeless = opened("name=hopeless", "methods=[fedavg]", "tune.grid.federate.lr=[3.0,2.0]")
    with pytest.raises(UserError, match=r"every candidate of fedavg diverged \(.*lower federate.lr=3.0\)"):
        execute(hopeless, Session())


def test_final_runs_that_diverge_are_told_at_the_end(opened: Opened, stages_ran) -> None:
    sweep = opened("methods=[fedavg]", "axes.data.partition.alpha=[1,10]", "seeds=[1]")
    failed = execute(sweep, Session())
    assert [line.partition(":")[0] for line in failed] == ["fedavg-if20-alpha10-s1", "fedavg-if5-alpha10-s1"]
    assert states(sweep) == ["done", "done", "done", "failed", "done", "failed"]


def test_another_experiments_folder_is_refused(opened: Opened, stages_ran, tmp_path: Path) -> None:
    files.write_text(tmp_path / "runs" / "trial" / "config.yaml", "name: trial\n")
    with pytest.raises(UserError, match="holds runs that are no sweep's; choose another name="):
        execute(opened(), Session())


def test_the_folders_config_stands_for_the_same_final_runs(opened: Opened, stages_ran) -> None:
    sweep = opened()
    execute(sweep, Session())
    saved = load_config([str(describe(sweep) / "config.yaml")])
    assert children(saved) == [run.config for run in runs(sweep) if run.kind == "final"]
