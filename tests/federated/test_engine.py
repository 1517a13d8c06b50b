"""A round is the weighted mean of its clients' own training; what diverges, stops or fails changes nothing else."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from fedscale.errors import Stopped, UserError
from fedscale.federated.backends import RoundStart, Trained
from fedscale.federated.checkpoint import newest_round, restore, save_round
from fedscale.federated.engine import Engine
from fedscale.federated.fit import check_last_batches
from fedscale.federated.rounds import _Stage
from fedscale.progress import SilentReporter
from fedscale.session import Session
from tests.federated.engine_support import MODELS, SIZES, make_engine, settings, trained


class Poisoned:
    """A backend whose named clients come back as NaN."""

    def __init__(self, engine: Engine, clients: set[int]) -> None:
        self._backend, self._clients = engine.backend, clients
        self.name, self.lanes = engine.backend.name, engine.backend.lanes

    def train(self, start: RoundStart, plan: Any) -> Iterator[Trained]:
        for group in self._backend.train(start, plan):
            for lane, client in enumerate(group.plan.clients):
                if client in self._clients:
                    group.state.model.flat_blocks()[0][lane] = torch.nan
            yield group


def models_of(engine: Engine, clients: list[int]) -> dict[int, torch.Tensor]:
    """Each client's model after training on its own in round 1."""
    found = {}
    for client in clients:
        (group,) = engine.backend.train(RoundStart(engine.server.vector.clone()), engine.plan(1, [client]))
        found[client] = group.state.model.lane(0, torch.zeros_like(engine.server.vector)).clone()
    return found


def test_a_round_is_the_mean_of_its_clients_by_samples() -> None:
    engine = make_engine(settings())
    cohort = engine.cohort(1)
    assert len(cohort) == 6 and [SIZES[c] for c in cohort] == sorted((SIZES[c] for c in cohort), reverse=True)
    models = models_of(engine, cohort)
    expected = sum(SIZES[c] * models[c] for c in cohort) / sum(SIZES[c] for c in cohort)
    result = engine.round(1)
    assert result is not None and (result.clients, result.diverged) == (6, [])
    torch.testing.assert_close(engine.server.vector, expected, rtol=0, atol=1e-12)


def test_a_round_of_clients_without_any_image_changes_nothing_and_has_no_loss() -> None:
    engine = make_engine(settings())
    engine.clients = [np.empty(0, dtype=np.int64)] * len(SIZES)
    before = engine.server.vector.clone()
    result = engine.round(1)
    assert result is not None and (result.loss, result.clients) == (None, 0)
    assert torch.equal(engine.server.vector, before)


def test_a_diverged_client_is_named_and_left_out_of_the_mean() -> None:
    engine = make_engine(settings(backend="batched", lanes=4))
    cohort = engine.cohort(1)
    others = cohort[:2] + cohort[3:]
    models = models_of(engine, others)
    expected = sum(SIZES[c] * models[c] for c in others) / sum(SIZES[c] for c in others)
    engine.backend = Poisoned(engine, {cohort[2]})
    result = engine.round(1)
    assert result is not None and result.diverged == [cohort[2]] and np.isfinite(result.loss)
    torch.testing.assert_close(engine.server.vector, expected, rtol=0, atol=1e-12)


def test_a_stopped_run_that_goes_on_names_the_clients_that_diverged_before_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Stage, "evaluate", lambda stage: SimpleNamespace(scores=dict, all=0.0))
    monkeypatch.setattr(_Stage, "_close", lambda stage, evaluation: {"diverged": stage.diverged})

    def stage(poisoned: set[int], session: Session) -> _Stage:
        engine = make_engine(settings())
        engine.backend = Poisoned(engine, poisoned)
        return _Stage(engine.config, engine, {}, MagicMock(), tmp_path, session, SilentReporter(), None)

    stopping = Session()
    stopping.stop.set()
    first = stage({0, 1}, stopping)
    with pytest.raises(Stopped, match="after round 1 of 3"):
        first.carry_out()
    named = [f"client {client} in round 1" for client in (0, 1) if client in first.engine.cohort(1)]
    assert named and stage(set(), Session()).carry_out()["diverged"] == named


def test_when_all_clients_diverge_the_learning_rate_is_named() -> None:
    engine = make_engine(settings())
    engine.backend = Poisoned(engine, set(range(8)))
    with pytest.raises(UserError, match=r"every client of round 1 diverged; lower federate.lr=0.05"):
        engine.round(1)


def test_an_interrupted_round_changes_nothing() -> None:
    engine = make_engine(settings(backend="batched", lanes=2))
    before, asked = engine.server.vector.clone(), iter([False] * 5 + [True] * 100)
    engine.interrupted = lambda: next(asked)
    assert engine.round(1) is None
    assert torch.equal(engine.server.vector, before)
    engine.interrupted = lambda: False
    again = trained(engine)
    assert torch.equal(again, trained(make_engine(settings(backend="batched", lanes=2))))


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedadam"])
def test_batched_groups_give_what_the_loop_gives(method: str, tmp_path: Path) -> None:
    loop = trained(make_engine(settings(method=method), folder=tmp_path / "loop"))
    for lanes in (2, 6):
        options = settings(method=method, backend="batched", lanes=lanes)
        assert (trained(make_engine(options, folder=tmp_path / str(lanes))) - loop).abs().max() < 1e-9


def test_even_groups_give_what_the_loop_gives_in_groups_of_the_largest_clients_steps(tmp_path: Path) -> None:
    loop = trained(make_engine(settings(), folder=tmp_path / "loop"))
    engine = make_engine(settings(backend="batched", lanes=6, even_groups=True), folder=tmp_path / "even")
    schedule = engine.schedule(1)
    assert schedule.group_steps == [engine.plan(1, group).total_steps for group in schedule.groups]
    largest = engine.plan(1, schedule.cohort[:1]).total_steps
    assert len(schedule.groups) > 1 and max(schedule.group_steps) == schedule.group_steps[0] == largest
    assert (trained(engine) - loop).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_exact_sums_agree_with_floating_ones(dtype: str) -> None:
    floating = trained(make_engine(settings(aggregate={"dtype": dtype})))
    exact = trained(make_engine(settings(aggregate={"exact": True})))
    assert (floating - exact).abs().max() < (1e-9 if dtype == "fp64" else 1e-5)


def test_a_value_that_fixed_point_cannot_hold_names_the_key() -> None:
    engine = make_engine(settings(aggregate={"exact": True, "fraction_bits": 50}))
    engine.server.vector[engine.layout.statistics[0].offset] = 1e9
    with pytest.raises(UserError, match=r"federate\.aggregate\.fraction_bits"):
        engine.round(1)


def test_updates_are_clipped_to_the_norm() -> None:
    engine = make_engine(settings(aggregate={"clip_norm": 1e-3}))
    before = engine.server.vector.clone()
    engine.round(1)
    assert 0 < (engine.server.vector - before).norm() <= 1e-3 + 1e-9


def test_a_store_on_disk_gives_the_same_bits_as_a_resident_one() -> None:
    options = settings(backend="batched", lanes=2)
    staged = make_engine(options, resident=False)
    try:
        assert torch.equal(trained(staged), trained(make_engine(options)))
    finally:
        staged.data.close()


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedyogi"])
def test_a_saved_round_goes_on_to_the_same_bits(method: str, tmp_path: Path) -> None:
    options = settings(method=method, backend="batched", lanes=2, checkpoint_every=2)
    whole = trained(make_engine(options, folder=tmp_path / "whole"), range(1, 6))
    first = make_engine(options, folder=tmp_path / "parts")
    trained(first, [1, 2])
    save_round(tmp_path / "parts", 2, first)
    trained(first, [3])  # not saved: it is done again
    second = make_engine(options, folder=tmp_path / "parts")
    found = newest_round(tmp_path / "parts", second.host.whole_layout.describe())
    assert found is not None and found[0] == 2
    restore(second, found[1])
    assert torch.equal(trained(second, [3, 4, 5]), whole)


def test_a_checkpoint_of_another_model_names_what_differs(tmp_path: Path) -> None:
    engine = make_engine(settings(), "dropout", folder=tmp_path)
    save_round(tmp_path, 1, engine)
    layout = engine.host.whole_layout.describe() | {"1.weight": [8, 432]}
    with pytest.raises(UserError, match=r"of another model \(1.weight was \[16, 432\], is \[8, 432\]\)"):
        newest_round(tmp_path, layout)


def test_a_last_batch_of_one_image_that_batch_norm_cannot_take_is_refused_before_any_round() -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(432, 4), torch.nn.BatchNorm1d(4))
    before = copy.deepcopy(flat.state_dict())
    with pytest.raises(UserError, match=r"federate\.batch_size=12: the last batch of client 1 \(13 images\) is one"):
        check_last_batches(flat, [24, 13, 12], 12, (3, 12, 12))
    with pytest.raises(UserError, match=r"federate\.batch_size=1: the last batch of client 0 "):
        check_last_batches(flat, [24], 1, (3, 12, 12))
    check_last_batches(flat, [24, 14, 0], 12, (3, 12, 12))
    check_last_batches(MODELS["resnet8"](), [13], 12, (3, 12, 12))  # many pixels a channel
    assert all(torch.equal(tensor, before[name]) for name, tensor in flat.state_dict().items())
