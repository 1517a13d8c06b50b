"""The rehearsal of ImageNet-LT: its shape at twelve classes, read by the reader of the real lists, and learnable."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedscale.cli import app
from fedscale.config import RecipeConfig, load_recipe
from fedscale.config.schema import OpenPoolConfig
from fedscale.data.build import build_shards
from fedscale.data.plan import make_plan
from fedscale.data.rehearsal import Rehearsal, words_of, write_rehearsal
from fedscale.data.sources import open_source
from fedscale.errors import UserError
from fedscale.progress import SilentReporter

SMALL = Rehearsal(classes=12, images=240, largest=60, smallest=4, test=3, pool=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "images"
    write_rehearsal(SMALL, folder, SilentReporter(), jobs=1)
    return folder


def recipe(images: Path) -> RecipeConfig:
    """The shipped recipe, of this many classes."""
    return dataclasses.replace(load_recipe(["shards/imagenet_lt_rehearsal.yaml", f"source={images}"]), classes=12)


def test_the_full_size_is_that_of_imagenet_lt() -> None:
    counts = Rehearsal().counts()
    assert (len(counts), sum(counts), max(counts), min(counts)) == (1000, 115_846, 1280, 5)
    assert counts != sorted(counts, reverse=True)
    assert len({words_of(label) for label in range(1000)}) == 1000


def test_the_lists_are_imagenet_lts_and_leave_the_pool_out(images: Path) -> None:
    lines = (images / "ImageNet_LT_train.txt").read_text().splitlines()
    assert len(lines) == 240
    assert lines[0] == "train/n00000001/n00000001_0.JPEG 0"
    assert len((images / "ImageNet_LT_test.txt").read_text().splitlines()) == 36
    files = sorted(path.relative_to(images).as_posix() for path in (images / "train").rglob("*.JPEG"))
    assert len(files) == 240 + 36
    assert len(set(files) - {line.split()[0] for line in lines}) == 36


def test_the_real_reader_deals_list_pool_validation_and_test(images: Path) -> None:
    plan = make_plan(recipe(images), open_source(recipe(images)))
    counts = {s: np.bincount(plan.labels["test" if s == "test" else "train"][rows]) for s, rows in plan.splits.items()}
    assert counts["train"].tolist() == SMALL.counts()
    assert counts["pool"].tolist() == [2] * 12
    assert counts["validation"].tolist() == [1] * 12
    assert counts["test"].tolist() == [3] * 12
    assert plan.class_names == tuple(words_of(label) for label in range(12))


def test_shards_are_built_of_it(images: Path, tmp_path: Path) -> None:
    manifest = build_shards(recipe(images), tmp_path / "shards", SilentReporter())
    assert (manifest.class_names[0], manifest.class_names[11]) == ("red circle on red", "orange square on red")
    assert manifest.class_counts("train") == SMALL.counts()
    assert manifest.class_counts("pool") == [2] * 12


def test_equal_settings_give_equal_bytes_and_another_seed_other_ones(images: Path, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        paths = (path for path in folder.rglob("*.JPEG"))
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    for name, seed in (("again", 7), ("other", 8)):
        write_rehearsal(dataclasses.replace(SMALL, seed=seed), tmp_path / name, SilentReporter(), jobs=1)
    first, again, other = content(images), content(tmp_path / "again"), content(tmp_path / "other")
    assert first == again
    assert len(set(first.values())) == len(first)
    assert not set(first.values()) & set(other.values())


def test_the_classes_can_be_learnt(images: Path) -> None:
    """Even by the nearest mean image of a class, four times as often as by chance."""
    source = open_source(recipe(images))

    def pixels(split: str) -> np.ndarray:
        whole = source.read(split, np.arange(len(source.labels(split))))
        return np.stack([np.asarray(Image.open(io.BytesIO(original.image)), float).ravel() for original in whole])

    train, labels = pixels("train"), source.labels("train")
    means = np.stack([train[labels == label].mean(0) for label in range(12)])
    tested = pixels("test")
    said = np.linalg.norm(tested[:, None] - means[None], axis=2).argmin(1)
    assert (said == source.labels("test")).mean() > 4 / 12


def test_a_round_of_the_shipped_config_runs_on_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"data.source={images}", "data.classes=12", "data.partition.clients=8", "federate.clients_per_round=1"]
    words += [
        "variant=fedavg",
        "federate.rounds=1",
        "model.name=resnet8",
        "model.width=4",
    ]  # ResNet-50 takes half a minute
    done = CliRunner().invoke(app, ["federate", "configs/imagenet_lt_rehearsal.yaml", *words])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / "imagenet_lt_rehearsal" / "fedavg-s7" / "federate"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["train_counts"] == SMALL.counts()
    few = [label for label, count in enumerate(SMALL.counts()) if count < 20]
    assert evaluation["groups"] == {"many": [], "medium": sorted({*range(12)} - {*few}), "few": few}


def test_a_folder_that_holds_the_set_is_left_and_another_refused(images: Path, tmp_path: Path) -> None:
    before = (images / "ImageNet_LT_train.txt").stat().st_mtime_ns
    write_rehearsal(SMALL, images, SilentReporter(), jobs=1)
    assert (images / "ImageNet_LT_train.txt").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds another rehearsal set .*choose another folder"):
        write_rehearsal(dataclasses.replace(SMALL, seed=8), images, SilentReporter(), jobs=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        write_rehearsal(SMALL, tmp_path / "mine", SilentReporter(), jobs=1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": 1001}, "classes=1001: expected 2 to 1,000"),
        ({"smallest": 60}, "smallest=60: expected 1 to below largest=60"),
        ({"test": 0}, "test=0: expected 1 or more images a class"),
    ],
)
def test_a_size_that_cannot_be_is_refused(settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        dataclasses.replace(SMALL, **settings)


def test_imagenets_own_words_name_the_classes_and_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    for name in ("n01", "n02", "n03"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "a.JPEG").write_bytes(b"")
    words = tmp_path / "LOC_synset_mapping.txt"
    words.write_text("n01 crane\nn02 tench, Tinca tinca\nn03 crane, bird\n")
    settings = RecipeConfig(format="imagenet", source=str(tmp_path), open_pool=OpenPoolConfig(enabled=False))
    assert open_source(settings).class_names == ("crane (n01)", "tench", "crane (n03)")
    words.write_text("n01 crane\nn02 tench\n")
    with pytest.raises(UserError, match="has no words for n03"):
        open_source(settings)
