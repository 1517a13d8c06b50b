"""Alignment after every n-th federated round: what it changes, and that neither a stop nor the ranks leave a trace."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedscale import files, stages
from fedscale.config import Config, overlaid, to_yaml
from fedscale.errors import Stopped, UserError
from fedscale.federated import rounds
from fedscale.runs import RunFolder, stage_inputs
from fedscale.server.align import between, train
from fedscale.server.align.between import BetweenRounds
from fedscale.session import Session
from tests.ranks import ranks
from tests.server.align.support import World

EXACT = {"backend": "batched", "lanes": 2, "aggregate": {"exact": True}}
RANK = """
import sys
from pathlib import Path
import torch
from fedscale.config import load_config
from fedscale.federated import rounds
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.server.align.between import BetweenRounds
from fedscale.session import Session

torch.set_num_threads(1)
config, run = load_config([sys.argv[1]]), RunFolder(Path(sys.argv[2]))
rounds.run(config, run, Session(SilentReporter()), BetweenRounds(config, run))
"""


def config_of(world: World, every: int, num_rounds: int = 3, **federate) -> Config:
    small = {"clients_per_round": 3, "local_epochs": 1, "batch_size": 2, "lr": 0.05, "backend": "loop", **federate}
    overlay = {
        "data": {"partition": {"clients": 3, "alpha": 100.0}},
        "pretrain": {"enabled": False},
        "federate": {"rounds": num_rounds, **small},
        "align": {"every": every, "epochs": 2},
    }
    return overlaid(world.config, overlay)


def federated(world: World, config: Config, session: Session | None = None) -> Path:
    """The federate folder after stage 2 with the hook that `stages` hands it."""
    folder = world.run.stage("federate")
    rounds.run(config, world.run, session or Session(), **stages.handed(config, world.run, "federate"))
    return folder


def anew(world: World, config: Config, session: Session | None = None) -> bytes:
    shutil.rmtree(world.run.stage("federate"))
    return (federated(world, config, session) / "model.safetensors").read_bytes()


@contextmanager
def stopping_in_alignment(monkeypatch: pytest.MonkeyPatch, session: Session, step: int) -> Iterator[None]:
    """Within the block the session is asked to stop at the `step`-th optimiser step of alignments."""
    steps, one_step = iter(range(1, 1000)), train._one_step

    def counted(*args):
        if next(steps) == step:
            session.stop.set()
        return one_step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_one_step", counted)
        yield


def test_an_alignment_after_every_round_changes_what_is_federated(world: World, teacher: None) -> None:
    never = anew(world, config_of(world, every=0, num_rounds=2))
    assert not (world.run.stage("federate") / "alignment.jsonl").exists()
    assert anew(world, config_of(world, every=1, num_rounds=2)) != never


def test_the_rounds_that_n_divides_are_followed_by_it_but_the_last_which_stage_3_follows(
    world: World, teacher: None
) -> None:
    anew(world, config_of(world, every=2, num_rounds=6))
    rows = files.read_jsonl(world.run.stage("federate") / "alignment.jsonl")
    assert [(row["round"], row["epoch"]) for row in rows] == [(2, 1), (2, 2), (4, 1), (4, 2)]
    assert len({row["loss"] for row in rows}) == 4


def test_the_next_round_begins_with_the_aligned_model(world: World, teacher: None) -> None:
    """Of one round alone is left what the hook is given; what it makes of that is what the checkpoint holds."""
    anew(world, config_of(world, every=1, num_rounds=1))
    state = load_file(world.run.stage("federate") / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in state.items()}
    config = config_of(world, every=1, num_rounds=2)
    hook = BetweenRounds(config, world.run)
    hook.prepare(world.manifest, between.Mesh(), Session())
    hook.align(1, state, between.Mesh(), Session())
    assert not torch.equal(state["layer3.bn2.running_mean"], before["layer3.bn2.running_mean"])
    anew(world, config)
    saved = load_file(world.run.stage("federate") / "round_1" / "state.safetensors")["vector"]
    for name in ("classifier.bias", "layer3.bn2.running_mean"):
        windows = saved.unfold(0, state[name].numel(), 1)
        assert (windows == state[name]).all(1).any(), f"{name} is not in the vector"
        assert not (windows == before[name]).all(1).any()


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedadam"])
@pytest.mark.parametrize("step", [2, 8])  # in the alignment after round 1, and after round 2
def test_stopped_in_an_alignment_and_resumed_it_ends_with_the_same_bytes(
    world: World, teacher: None, monkeypatch: pytest.MonkeyPatch, method: str, step: int
) -> None:
    config = config_of(world, every=1, method=method)
    whole = anew(world, config)
    rows = files.read_jsonl(world.run.stage("federate") / "alignment.jsonl")
    session = Session()
    message = f"stopped in what follows round {1 if step < 7 else 2}; {0 if step < 7 else 1} of 3 are saved"
    with stopping_in_alignment(monkeypatch, session, step), pytest.raises(Stopped, match=message):
        anew(world, config, session)
    assert (federated(world, config) / "model.safetensors").read_bytes() == whole
    assert files.read_jsonl(world.run.stage("federate") / "alignment.jsonl") == rows


def test_stopped_between_rounds_and_resumed_it_ends_with_the_same_bytes(world: World, teacher: None) -> None:
    class StopsAfterARound(Session):
        @property
        def stop_requested(self) -> bool:
            return (world.run.stage("federate") / "alignment.jsonl").exists()

    config = config_of(world, every=1)
    whole = anew(world, config)
    with pytest.raises(Stopped):
        anew(world, config, StopsAfterARound())
    assert (federated(world, config) / "model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_in_exact_mode_two_ranks_give_the_bytes_of_one(world: World, teacher: None, tmp_path: Path) -> None:
    config = config_of(world, every=1, method="scaffold", **EXACT)
    alone = anew(world, config)
    assert alone != anew(world, config_of(world, every=0, method="scaffold", **EXACT))
    shutil.rmtree(world.run.stage("federate"))
    files.write_text(tmp_path / "config.yaml", to_yaml(config))
    files.write_text(tmp_path / "rank.py", RANK)
    done = ranks(2, tmp_path / "rank.py", tmp_path / "config.yaml", world.run.path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (world.run.stage("federate") / "model.safetensors").read_bytes() == alone


def test_a_loss_that_is_not_finite_is_the_users_learning_rate(world: World, teacher: None) -> None:
    config = overlaid(config_of(world, every=1), {"align": {"lr": 1e20}})
    with pytest.raises(UserError, match=r"align: the loss is (nan|inf) in epoch \d; lower align\.lr"):
        anew(world, config)


def test_captions_are_needed_and_the_alignment_is_an_input_only_where_it_is_asked_for() -> None:
    config = overlaid(Config(), {"name": "t"})
    asked = overlaid(config, {"align": {"every": 5}})
    off = overlaid(asked, {"align": {"enabled": False}})
    assert stages.prerequisites(config, "federate") == ["pretrain"]
    assert stages.prerequisites(asked, "federate") == ["caption", "pretrain"]
    assert stages.prerequisites(off, "federate") == ["pretrain"]
    assert stage_inputs(off, "federate") == stage_inputs(config, "federate")
    assert stage_inputs(asked, "federate")["align_every"] == 5
    other = overlaid(asked, {"align": {"lr": 0.5}})
    assert stage_inputs(other, "federate") != stage_inputs(asked, "federate")
    assert stage_inputs(overlaid(config, {"align": {"lr": 0.5}}), "federate") == stage_inputs(config, "federate")
    assert stages.handed(config, RunFolder(Path("r")), "federate") == {}
    assert set(stages.handed(asked, RunFolder(Path("r")), "federate")) == {"after_round"}
