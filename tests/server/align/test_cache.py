"""The alignment set is drawn once, and again only where something that determines it has changed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedscale.config import Config, overlaid
from fedscale.errors import Stopped
from fedscale.server.align import cache
from fedscale.server.align import stage as align
from fedscale.server.align.cache import alignment_set
from fedscale.server.align.draw import AlignmentSet, Teacher
from fedscale.server.caption import run as caption
from fedscale.session import Session
from tests.server.align.support import COLOURS, POOL, World, colour_teacher, make_data


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each time that the teacher was loaded."""
    times: list[str] = []

    def load(config: Config, names: tuple[str, ...], device: torch.device) -> Teacher:
        times.append(config.align.teacher)
        return colour_teacher

    monkeypatch.setattr(cache, "load_teacher", load)
    return times


def made(world: World, config: Config | None = None) -> AlignmentSet:
    return alignment_set(config or world.config, world.manifest, world.run, torch.device("cpu"), Session())


def files_of(world: World) -> Iterator[Path]:
    return (Path(world.config.out) / world.config.name / "shared").glob("alignment-*.safetensors")


def test_a_set_that_is_read_is_the_one_that_was_drawn(world: World, loaded: list[str]) -> None:
    drawn, read = made(world), made(world)
    assert len(loaded) == 1
    assert drawn.origins == read.origins and (drawn.images == read.images).all()
    assert drawn.labels.tolist() == read.labels.tolist() and drawn.labels.dtype == read.labels.dtype
    assert torch.equal(drawn.teacher_logits, read.teacher_logits)
    assert drawn.to_dict(COLOURS) == read.to_dict(COLOURS)


def test_a_stage_that_was_stopped_in_training_loads_no_teacher_again(world: World, loaded: list[str]) -> None:
    class StopsInTraining(Session):
        asked = 0

        @property
        def stop_requested(self) -> bool:
            self.asked += 1
            return self.asked > 6  # drawing asks six times: before each shard, and before each batch

    with pytest.raises(Stopped, match="epoch 1"):
        align.run(world.config, world.run, StopsInTraining())
    align.run(world.config, world.run, Session())
    assert len(loaded) == 1


def test_a_stop_while_drawing_leaves_no_set(world: World, loaded: list[str]) -> None:
    session = Session()
    session.stop.set()
    with pytest.raises(Stopped):
        alignment_set(world.config, world.manifest, world.run, torch.device("cpu"), session)
    assert not list(files_of(world))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"align": {"images_per_class": 5}},
        {"align": {"labels": "keyword"}},
        {"align": {"teacher": "mllm"}},
        {"align": {"logit_scale": 50.0}},
        {"teachers": {"clip": {"prompt": "a drawing of a {}."}}},
    ],
    ids=str,
)
def test_what_determines_the_set_has_it_drawn_anew(world: World, loaded: list[str], change: dict) -> None:
    made(world)
    made(world, overlaid(world.config, change))
    assert len(loaded) == 2 and len(list(files_of(world))) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"align": {"lr": 0.5, "epochs": 1, "batch_size": 3, "beta": 2.0, "temperature": 1.0, "every": 3}},
        {"teachers": {"mllm": {"question": "What?"}}},  # of the other teacher
        {"federate": {"rounds": 3}, "model": {"width": 8}},
    ],
    ids=str,
)
def test_what_does_not_determine_it_leaves_it(world: World, loaded: list[str], change: dict) -> None:
    made(world)
    made(world, overlaid(world.config, change))
    assert len(loaded) == 1


def test_other_captions_have_it_drawn_anew(world: World, loaded: list[str], tmp_path: Path) -> None:
    made(world)
    world.manifest = make_data(tmp_path / "other", POOL[:18])
    data = dataclasses.replace(world.config.data, dir=str(world.manifest.root))
    world.config = dataclasses.replace(world.config, data=data)
    for path in world.run.stage("caption").iterdir():
        path.unlink()
    caption(world.config, world.run, Session())
    assert len(made(world).labels) == 18 and len(loaded) == 2


def test_a_file_that_was_cut_short_is_drawn_again(world: World, loaded: list[str]) -> None:
    whole = made(world)
    (path,) = files_of(world)
    path.write_bytes(path.read_bytes()[:-100])
    assert np.array_equal(made(world).images, whole.images) and len(loaded) == 2
