"""CLIP's view of the clients' images is what CLIP itself says, made once a run, and refused where it does not fit."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fedscale import stages
from fedscale.config import overlaid
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest
from fedscale.data.store import ClientStore
from fedscale.errors import Stopped, UserError
from fedscale.federated.data import RoundData
from fedscale.federated.fit import check_fit
from fedscale.federated.methods import Problem, method_class
from fedscale.federated.teacher import clip_view
from fedscale.models import ResNet8
from fedscale.models.clip import load_clip
from fedscale.progress import SilentReporter
from fedscale.runs import stage_inputs
from fedscale.session import Session
from tests.server.teachers_support import train_tiny_clip

NAMES = ("red_thing", "green", "blue")


class Store:
    """What is read of the clients' store."""

    split, keys = "train", tuple(str(number) for number in range(12))

    def __init__(self) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


class Data:
    """What is read of the manifest."""

    class_names, fingerprint = NAMES, "f" * 16


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teachers") / "clip"
    train_tiny_clip(torch.from_numpy(Store().images), folder)
    return str(folder)


def config_of(clip: str, out: Path) -> Config:
    return overlaid(Config(), {"name": "t", "out": str(out), "teachers": {"clip": {"model": clip, "pretrained": None}}})


def view_of(config: Config, session: Session | None = None) -> dict[str, torch.Tensor]:
    store: ClientStore = Store()  # type: ignore[assignment]
    manifest: Manifest = Data()  # type: ignore[assignment]
    return clip_view(config, manifest, store, torch.device("cpu"), session or Session(SilentReporter()))


def test_the_logits_are_clips_own_scale_times_the_cosines_to_the_prompts(clip: str, tmp_path: Path) -> None:
    config = config_of(clip, tmp_path)
    view = view_of(config)
    teacher = load_clip(config.teachers.clip)
    texts = teacher.encode_texts([f"a photo of a {name}." for name in ("red thing", "green", "blue")])
    images = teacher.encode_images(torch.from_numpy(Store().images))
    assert view["logits"].shape == (12, 3) and view["classes"].shape == (3, 16)
    torch.testing.assert_close(view["logits"], teacher.logit_scale * images @ texts.T)
    torch.testing.assert_close(view["classes"], texts)
    assert view["logits"].std(dim=0).min() > 0, "images differ"


def test_images_are_encoded_once_and_again_only_for_another_prompt_or_a_torn_file(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(clip, tmp_path)
    first = view_of(config)
    (kept,) = (tmp_path / "t" / "shared").glob("clip-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-40])
    assert torch.equal(view_of(config)["logits"], first["logits"])
    other = dataclasses.replace(config.teachers.clip, prompt="{}")
    view_of(dataclasses.replace(config, teachers=dataclasses.replace(config.teachers, clip=other)))
    assert len(list((tmp_path / "t" / "shared").glob("clip-*"))) == 2
    monkeypatch.setattr("fedscale.models.clip.load_clip", None)  # whoever calls it fails
    assert torch.equal(view_of(config)["logits"], first["logits"])


def test_a_stop_while_images_are_encoded_leaves_no_file(clip: str, tmp_path: Path) -> None:
    session = Session(SilentReporter())
    session.stop.set()
    with pytest.raises(Stopped, match="CLIP encoded"):
        view_of(config_of(clip, tmp_path), session)
    assert not list(tmp_path.rglob("clip-*"))


def test_a_teacher_without_weights_is_named_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "no such clip"
    with pytest.raises(UserError, match=r"teachers\.clip\.model") as error:
        view_of(config_of(f"{missing}/", tmp_path))
    assert "\n" not in str(error.value)


def test_a_teacher_of_other_classes_is_refused_in_one_line() -> None:
    config = overlaid(Config(), {"federate": {"method": "clip2fl"}}).federate
    data = RoundData(Store().images, np.zeros(12, np.int64), torch.device("cpu"), (0.5,) * 3, (0.25,) * 3, "none")
    data.add_side("clip", torch.zeros(12, 7))
    method = method_class("clip2fl")(config, Problem(3, 16, 2))
    with pytest.raises(UserError, match="the teacher knows 7 classes, the model has 3; use a teacher of the same"):
        check_fit(method, ResNet8(3, 4), config, data, {"clip": torch.zeros(7, 16)})


def federating(method: str, **settings: object) -> Config:
    alone = {"pretrain": {"enabled": False}, "align": {"enabled": False}, "federate": {"method": method}}
    return overlaid(Config(), {**alone, "teachers": {"offline": {"enabled": True}}, **settings})


def test_clients_are_taught_by_the_teacher_that_was_trained_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale.teachers.offline.ensure_offline_teachers", lambda config, *rest: "located")
    session = Session(SilentReporter())
    assert stages._with_teachers(federating("clip2fl"), "federate", session) == "located"
    config = federating("creff")
    assert stages._with_teachers(config, "federate", session) is config, "CReFF needs none"


@pytest.mark.parametrize(
    "settings",
    [
        {"teachers": {"offline": {"enabled": True, "lr": 0.5}}},
        {"teachers": {"clip": {"model": "x"}}},
        {"caption": {"seed": 8}},
    ],
)
def test_another_teacher_is_another_federation_where_clients_learn_from_it(settings: dict[str, object]) -> None:
    def inputs(method: str, **changed: object) -> object:
        return stage_inputs(federating(method, **changed), "federate")

    assert inputs("clip2fl", **settings) != inputs("clip2fl")
    assert inputs("creff", **settings) == inputs("creff")
