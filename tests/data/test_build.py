import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedscale.config import RecipeConfig, load_recipe
from fedscale.config.schema import DataConfig, OpenPoolConfig, ShapesConfig
from fedscale.data.build import build_shards, ensure_shards, recipe_of, status
from fedscale.data.images import decode
from fedscale.data.manifest import Manifest
from fedscale.data.shards import read_shard
from fedscale.data.verify import verify_shards
from fedscale.errors import UserError
from fedscale.progress import SilentReporter

from .conftest import NAMES, picture, write_parquet

Build = Callable[[RecipeConfig], Manifest]


def data_of(recipe: RecipeConfig, /, **keys: object) -> DataConfig:
    return DataConfig(**{entry: getattr(recipe, entry) for entry in recipe_of(recipe)}, **keys)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_manifest_says_what_the_shards_hold(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    assert manifest.class_names == NAMES
    assert {split: manifest.class_counts(split) for split in manifest.splits} == {
        "train": [16, 8, 4],
        "pool": [2, 10, 14],
        "validation": [2, 2, 2],
        "test": [4, 4, 4],
    }
    assert [shard.file for shard in manifest.shards("train")] == [
        "train/00000.tar",
        "train/00001.tar",
        "train/00002.tar",
    ]
    assert [shard.samples for shard in manifest.shards("train")] == [10, 10, 8]
    assert verify_shards(manifest.root, SilentReporter()) == []
    assert manifest == Manifest.load(manifest.root)
    assert sorted(path.name for path in manifest.root.parent.iterdir()) == ["parquet", "shards"]


def test_images_labels_and_names_stay_together(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    sources = set()
    for split in ("train", "pool", "validation"):
        for shard in manifest.shards(split):
            for sample in read_shard(manifest.path(shard)):
                word, number = str(sample.source).removesuffix(".jpg").split("/")
                assert sample.image == picture(1000 * NAMES.index(word) + int(number))
                assert sample.label == (None if split == "pool" else NAMES.index(word))
                assert sample.keyword == (word if split == "pool" else None)
                sources.add(sample.source)
    assert len(sources) == 60  # no image twice, none lost


def test_the_same_recipe_gives_the_same_bytes(recipe: RecipeConfig, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_shards(recipe, tmp_path / name, SilentReporter())
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_complete_folder_is_returned_as_it_is(recipe: RecipeConfig, build: Build, parquet: Path) -> None:
    first = build(recipe)
    for path in parquet.iterdir():
        path.unlink()
    assert build(recipe) == first
    assert build(replace(recipe, max_corrupt=0.5)) == first


def test_a_folder_with_something_else_is_never_touched(recipe: RecipeConfig, build: Build, tmp_path: Path) -> None:
    build(recipe)
    with pytest.raises(
        UserError, match=r"another recipe \(imbalance_factor was 4, is 2; open_pool.reserve was 4, is 0\)"
    ):
        build(replace(recipe, imbalance_factor=2, open_pool=OpenPoolConfig(reserve=0, validation=2)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds no shards"):
        build_shards(recipe, tmp_path / "mine", SilentReporter())
    assert contents(tmp_path / "mine") == {"thesis.txt": b"precious"}


def test_a_build_that_fails_leaves_nothing(recipe: RecipeConfig, build: Build, parquet: Path, tmp_path: Path) -> None:
    file = parquet / "train-00000-of-00001.parquet"
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    with pytest.raises(UserError):
        build(recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["parquet"]


def test_corrupt_images_are_left_out_counted_and_named(recipe: RecipeConfig, parquet: Path, tmp_path: Path) -> None:
    write_parquet(parquet / "train-00000-of-00001.parquet", [0, 1, 2] * 20, broken=(4, 30), names=NAMES)
    reporter = SilentReporter()
    with pytest.raises(UserError, match=r"more than 0 images cannot be decoded, the limit of max_corrupt=0.01"):
        build_shards(recipe, tmp_path / "shards", reporter)
    manifest = build_shards(replace(recipe, max_corrupt=0.05), tmp_path / "shards", reporter)
    assert {entry["name"] for entry in manifest.excluded} == {"bee/4.jpg", "ant/30.jpg"}
    assert all("not an image" in entry["reason"] for entry in manifest.excluded)
    assert sum(manifest.num_samples(split) for split in manifest.splits) == 70
    assert any("bee/4.jpg" in line for line in reporter.lines)
    assert any("2 of 72 images left out" in line for line in reporter.lines)
    assert status(manifest.root)["excluded"] == 2


def test_a_class_of_which_nothing_decodes_is_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "source" / "train.parquet", [0, 1, 1, 1], broken=(0,), names=("ant", "bee"))
    recipe = RecipeConfig(
        name="x",
        format="parquet",
        source=str(tmp_path / "source"),
        max_corrupt=0.5,
        open_pool=OpenPoolConfig(enabled=False),
    )
    with pytest.raises(UserError, match="class ant has no training image that decodes"):
        build_shards(recipe, tmp_path / "shards", SilentReporter())


def test_other_formats_become_png_and_a_source_without_test_images_says_so(tmp_path: Path) -> None:
    for name, form in (("ant", "BMP"), ("bee", "PNG")):
        (tmp_path / "source" / name).mkdir(parents=True)
        (tmp_path / "source" / name / "1.bmp").write_bytes(picture(3, form=form))
    recipe = RecipeConfig(
        name="x", format="folder", source=str(tmp_path / "source"), open_pool=OpenPoolConfig(enabled=False)
    )
    reporter = SilentReporter()
    manifest = build_shards(recipe, tmp_path / "shards", reporter)
    samples = list(read_shard(manifest.path(manifest.shards("train")[0])))
    assert {sample.suffix for sample in samples} == {"png"}
    first, second = (np.asarray(decode(sample.image)) for sample in samples)
    assert (first == second).all()
    assert any("no test images" in line for line in reporter.lines)
    with pytest.raises(UserError, match="has no test images, only train"):
        manifest.shards("test")


def test_status_is_json_with_the_counts(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    told = json.loads(json.dumps(status(manifest.root)))
    assert (told["name"], told["shards"], told["samples"]) == ("insects", 9, 72)
    assert told["splits"]["train"]["class_counts"] == {"ant": 16, "bee": 8, "cow": 4}
    assert told["splits"]["pool"]["samples"] == 26


def test_a_run_builds_its_shards_once_beside_its_name(
    recipe: RecipeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = data_of(recipe, recipe="shards/insects.yaml")
    manifest = ensure_shards(data, SilentReporter())
    assert str(manifest.root) == f"shards/insects-{manifest.fingerprint[:8]}"
    assert ensure_shards(data, SilentReporter()) == manifest
    given = ensure_shards(
        replace(data, dir=str(manifest.root), source="elsewhere", imbalance_factor=4.0), SilentReporter()
    )
    assert given == manifest
    with pytest.raises(UserError, match=r"built by another recipe \(imbalance_factor was 4, is 50\)"):
        ensure_shards(replace(data, dir=str(manifest.root), imbalance_factor=50), SilentReporter())


def test_a_run_without_shards_and_originals_says_how_to_name_them(
    recipe: RecipeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data.source=gone: no such folder.*data.source=DIR"):
        ensure_shards(data_of(replace(recipe, source="gone"), recipe="r.yaml"), SilentReporter())
    with pytest.raises(UserError, match=r"data\.dir=gone: no shards"):
        ensure_shards(DataConfig(dir="gone"), SilentReporter())


def test_shapes_are_built_from_nothing(build: Build) -> None:
    recipe = RecipeConfig(
        name="shapes",
        format="shapes",
        imbalance_factor=5,
        shapes=ShapesConfig(train_per_class=8, test_per_class=1),
        open_pool=OpenPoolConfig(reserve=3, validation=1),
    )
    manifest = build(recipe)
    assert manifest.class_counts("train")[0] == 5
    assert manifest.class_counts("train")[-1] == 1
    assert sum(manifest.num_samples(split) for split in manifest.splits) == 90


@pytest.mark.parametrize("name", ["shapes", "cifar10_lt", "cifar100_lt", "imagenet_lt"])
def test_the_recipes_load(name: str) -> None:
    recipe = load_recipe([f"shards/{name}.yaml"])
    assert recipe.name == name
    assert not recipe.class_names or len(set(recipe.class_names)) == recipe.classes


def test_a_changed_shard_is_found(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    path = manifest.path(manifest.shards("pool")[1])
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    (fault,) = verify_shards(manifest.root, SilentReporter())
    assert fault.shard == "pool/00001.tar" and fault.reason.startswith("SHA-256 ")


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"splits": {"train": [{"file": "a"}]}}'])
def test_a_malformed_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: not"):
        Manifest.load(tmp_path)


def test_a_missing_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fedscale shards build"):
        Manifest.load(tmp_path)


@pytest.mark.slow
def test_real_cifar10_is_built_and_read_back(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 parquet at {folder}")
    manifest = build_shards(
        load_recipe(["shards/cifar10_lt.yaml", f"source={folder}"]), tmp_path / "cifar10", SilentReporter()
    )
    assert manifest.class_counts("train") == [4500, 2697, 1617, 969, 581, 348, 208, 125, 75, 45]
    assert manifest.num_samples("pool") + manifest.num_samples("validation") == 38_835
    assert manifest.class_counts("validation") == [100] * 10
    assert verify_shards(manifest.root, SilentReporter()) == []
    for sample in read_shard(manifest.path(manifest.shards("pool")[0])):
        assert str(sample.source).split("/")[0] == sample.keyword
