"""A sweep file unfolded: which runs it stands for, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedscale.errors import UserError
from fedscale.stages import children
from fedscale.sweep import Sweep, open_sweep, runs

Opened = Callable[..., Sweep]


def test_the_list_is_candidates_first_then_methods_by_axes_by_seeds(opened: Opened) -> None:
    listed = list(runs(opened()))
    assert [run.number for run in listed] == list(range(len(listed)))
    assert [run.name for run in listed if run.kind == "tune"] == [
        "tune/fedavg-federate.lr0.1-align.lr0.01-s1000",
        "tune/fedavg-federate.lr0.3-align.lr0.01-s1000",
        *(f"tune/fedprox-federate.lr{lr}-align.lr0.01-mu{mu}-s1000" for lr in (0.1, 0.3) for mu in (0.0, 0.1)),
        *(f"tune/full-federate.lr{lr}-align.lr{other}-s1000" for lr in (0.1, 0.3) for other in (0.01, 0.02)),
    ]
    final = [run for run in listed if run.kind == "final"]
    assert [run.name for run in final] == [
        f"{method}-if{factor}-s{seed}"
        for method in ("fedavg", "fedprox", "full")
        for factor in (20, 5)
        for seed in (1, 2)
    ]
    assert {run.config.data.partition.clients for run in listed} == {10}, "an axis of one value sets the key"
    assert final[4].config.federate.method == "fedprox" and final[4].after == (2, 3, 4, 5)


def test_candidates_are_short_judged_on_validation_and_of_one_seed(opened: Opened) -> None:
    for run in opened().tuning:
        assert (run.config.federate.rounds, run.config.eval.split, run.config.seed) == (2, "validation", 1000)
        assert run.config.data.imbalance_factor == 20, "at the axis's first value"
    assert {run.config.data.imbalance_factor for run in opened("tune.at.data.imbalance_factor=5").tuning} == {5}
    assert all(run.config.eval.split == "test" for run in runs(opened()) if run.kind == "final")


def test_a_method_with_one_candidate_is_not_tuned(opened: Opened) -> None:
    sweep = opened("methods=[fedavg]", "tune.grid.federate.lr=[0.2]")
    assert sweep.tuning == []
    assert {run.config.federate.lr for run in runs(sweep)} == {0.2}
    assert all(not run.after for run in runs(sweep))


def test_words_are_the_sweeps_or_its_base_configs(opened: Opened) -> None:
    sweep = opened("methods=[full]", "seeds=[5]", "federate.local_epochs=3", "tune.rounds=1")
    assert {run.config.federate.local_epochs for run in runs(sweep)} == {3}
    assert {run.config.seed for run in runs(sweep)} == {5, 1000}


def test_methods_may_be_variants_of_the_base_and_overlay_files(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "prox.yaml").write_text("federate: {method: fedprox}\n")
    words = [f"methods.mixed=[{tmp_path / 'prox.yaml'},{{align: {{enabled: false}}}}]"]
    config = opened(*words).methods["mixed"]
    assert (config.federate.method, config.align.enabled, config.name) == ("fedprox", False, "trial")


def test_an_axis_of_one_value_is_the_bases_which_a_method_may_differ_from(opened: Opened) -> None:
    words = ["axes.federate.rounds=[40]", "methods.server_only={federate: {rounds: 0}, pretrain: {objective: keyword}}"]
    found = {(run.kind, run.method): run.config.federate.rounds for run in runs(opened(*words))}
    assert (found["final", "fedavg"], found["final", "server_only"]) == (40, 0)
    assert (found["tune", "fedavg"], found["tune", "server_only"]) == (2, 0)


def test_each_run_is_a_config_of_its_own(opened: Opened) -> None:
    for run in runs(opened()):
        assert children(run.config) == [run.config]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["federate.roundz=3"], "federate.roundz: unknown key; did you mean federate.rounds?"),
        (["tune.budgett=3"], "tune.budgett: unknown key; did you mean tune.budget?"),
        (["axes.data.imbalance_facto=[3]"], "axes.data.imbalance_facto: data.imbalance_facto: unknown key; did you"),
        (["axes.seed=[3]"], "axes=seed: expected another key"),
        (["axes.data.imbalance_factor=5"], "axes.data.imbalance_factor=5: expected a list of values"),
        (["tune.budget=3"], "tune: fedprox has 4 candidates, above tune.budget=3"),
        (["tune.grid.data.imbalance_factor=[3]"], "tune=data.imbalance_factor: expected another key"),
        (["tune.grid.eval.split=[test]"], "tune.grid=eval.split: expected another key"),
        (
            ["tune.options.fedavg.federate.options.mu=[1,2]"],
            "federate.options.mu: fedavg has no such option; it is an option of fedprox",
        ),
        (["tune.options.fedavg.align.epochs=[1,2]"], "align.epochs: changes nothing of fedavg; take it out"),
        (["tune.options.fedavgm.federate.lr=[1]"], "tune.options=fedavgm: expected one of the methods"),
        (["tune.at.data.imbalance_factor=7"], "tune.at.data.imbalance_factor=7: expected one of [20, 5]"),
        (["methods=[fill]"], "methods=fill: expected one of fedavg, fedprox, full"),
        (["methods.full.federate.lr=none"], "methods.full: federate.lr=none: expected a number"),
        (["seeds=[1,1]"], "different seeds"),
        (["slurm.options=[gpu]"], "slurm.options=gpu"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(opened: Opened, words: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        list(runs(opened(*words)))
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(Path("configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_unfolds_within_its_budget(path: Path) -> None:
    listed = list(runs(open_sweep([str(path)])))
    assert len({run.name for run in listed}) == len(listed) > 0
