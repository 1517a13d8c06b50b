import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fedscale import files, lock
from fedscale.config import Config
from fedscale.config.schema import DataConfig, OfflineConfig, OpenPoolConfig, ShapesConfig, TeachersConfig
from fedscale.errors import Stopped, UserError
from fedscale.models.clip import load_clip
from fedscale.models.mllm import load_mllm
from fedscale.progress import SilentReporter
from fedscale.session import Session
from fedscale.teachers import offline
from fedscale.teachers.offline import ensure_offline_teachers, keyword_texts, located_offline_teachers


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A pool of 60 small images with keywords, and a validation split."""
    data = DataConfig(
        name="shapes",
        format="shapes",
        dir=str(tmp_path_factory.mktemp("data") / "shards"),
        recipe="shards/shapes.yaml",
        imbalance_factor=2,
        open_pool=OpenPoolConfig(reserve=6, validation=2),
        shapes=ShapesConfig(train_per_class=14, test_per_class=1),
    )
    settings = OfflineConfig(enabled=True, images=40, clip_epochs=1, mllm_epochs=1, batch_size=20)
    return Config(name="a", device="cpu", data=data, teachers=TeachersConfig(offline=settings))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """The config with teachers, and the lines that were said."""
    reporter = SilentReporter()
    folder = tmp_path_factory.mktemp("run")
    return ensure_offline_teachers(config, folder, Session(reporter)), reporter.lines, folder


def test_both_teachers_are_whole_folders_of_the_ordinary_kind(trained):
    config, _, folder = trained
    clip, mllm = load_clip(config.teachers.clip), load_mllm(config.teachers.mllm)
    images = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    assert clip.encode_images(images).shape == (2, clip.embed_dim)
    assert len(mllm.generate(images, [config.teachers.mllm.question] * 2, max_new_tokens=3)) == 2
    assert [path.name.startswith("teachers-") for path in folder.iterdir()] == [True]


def test_it_says_what_it_does_and_how_good_the_teachers_are(trained):
    _, lines, folder = trained
    said = "\n".join(lines)
    assert "no published weights" in said and "validation accuracy" in said
    card = files.read_json(next(folder.iterdir()) / "done.json")
    assert card["images"] == 40 and 0 <= card["clip"] <= 100
    assert set(card["llava"]) == {"description", "conversation", "reasoning"}


def test_teachers_that_are_there_are_taken_and_others_are_not(trained, config, monkeypatch):
    resolved, _, folder = trained
    asked = []
    monkeypatch.setattr(
        offline, "_train", lambda *args: asked.append(args) or {"images": 0, "seconds": 0, "clip": None}
    )
    reporter = SilentReporter()
    assert ensure_offline_teachers(config, folder, Session(reporter)).teachers == resolved.teachers
    assert not asked and not reporter.lines
    settings = dataclasses.replace(config.teachers.offline, lr=2e-3)
    other = dataclasses.replace(config, teachers=dataclasses.replace(config.teachers, offline=settings))
    assert ensure_offline_teachers(other, folder, Session(reporter)).teachers != resolved.teachers
    assert len(asked) == 1


def test_of_several_processes_one_trains_and_the_others_wait(config, tmp_path, monkeypatch):
    trained, sessions = [], [Session() for _ in range(3)]

    def train(config, manifest, out, reporter):
        trained.append(out)
        while sum(any("waiting for its end" in line for line in s.reporter.lines) for s in sessions) < 2:
            time.sleep(0.01)
        return {"images": 0, "seconds": 0, "clip": None}

    monkeypatch.setattr(offline, "_train", train)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda session: ensure_offline_teachers(config, tmp_path, session), sessions))
    assert len(trained) == 1 and found[0] == found[1] == found[2]
    assert [path.name.startswith("teachers-") for path in tmp_path.iterdir()] == [True]


def test_who_waits_for_teachers_can_be_stopped(config, tmp_path):
    home = Path(located_offline_teachers(config, tmp_path).teachers.clip.model).parent
    session = Session()
    session.stop.set()
    with lock.held(home.with_name(f".{home.name}{lock.FILE}"), home, Session()), pytest.raises(Stopped):
        ensure_offline_teachers(config, tmp_path, session)
    assert list(tmp_path.iterdir()) == []


def test_keyword_texts_say_no_more_than_the_keyword():
    assert keyword_texts(["airplane", "polar_bear"]) == {
        "description": ["a photo of an airplane.", "a photo of a polar bear."],
        "conversation": ["an airplane.", "a polar bear."],
        "reasoning": [
            "it is an airplane, because it looks like an airplane.",
            "it is a polar bear, because it looks like a polar bear.",
        ],
    }


def test_an_image_size_that_patches_do_not_fit_is_refused(config, tmp_path):
    odd = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=30))
    with pytest.raises(UserError, match=r"data\.image_size=30.*multiple of 8"):
        ensure_offline_teachers(odd, tmp_path, Session())
    assert not list(tmp_path.iterdir())
