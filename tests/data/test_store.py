import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedscale.config import RecipeConfig
from fedscale.data.images import decode, fit_square
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, read_shard, write_shard
from fedscale.data.store import ClientStore, open_store
from fedscale.errors import UserError
from fedscale.progress import SilentReporter

from .conftest import NAMES, picture

Build = Callable[[RecipeConfig], Manifest]


def opened(manifest: Manifest, split: str = "train", size: int = 32, limit: float = 0.01) -> ClientStore:
    return open_store(manifest, split, size, SilentReporter(), limit)


def test_the_store_holds_the_decoded_images_in_shard_order(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    store = opened(manifest)
    samples = [sample for shard in manifest.shards("train") for sample in read_shard(manifest.path(shard))]
    assert store.images.dtype == np.uint8
    assert isinstance(store.images, np.memmap)
    assert store.keys == [sample.key for sample in samples]
    assert store.labels.tolist() == [sample.label for sample in samples]
    assert store.labels.dtype == np.int64
    for row, sample in enumerate(samples):
        assert (store.images[row] == np.asarray(decode(sample.image))).all()
    assert (store.class_names, store.split, store.excluded) == (NAMES, "train", [])


def test_the_pool_has_keywords_and_no_labels(recipe: RecipeConfig, build: Build) -> None:
    store = opened(build(recipe), "pool")
    assert set(store.labels.tolist()) == {-1}
    assert {word: store.keywords.count(word) for word in NAMES} == {"ant": 2, "bee": 10, "cow": 14}


def test_it_is_decoded_once(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    first = opened(manifest)
    for shard in manifest.shards("train"):
        manifest.path(shard).unlink()
    assert (opened(manifest).images == first.images).all()


def test_what_is_written_to_it_stays_out_of_the_file(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    store = opened(manifest)
    before = store.images[0].copy()
    store.images[0] = 0
    assert (opened(manifest).images[0] == before).all()


def test_shards_that_differ_from_the_manifest_are_refused(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    path = manifest.path(manifest.shards("train")[0])
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match="differs from the manifest"):
        opened(manifest)
    assert list((manifest.root / "store").iterdir()) == []
    path.unlink()
    with pytest.raises(UserError, match="no such shard"):
        opened(manifest)


def test_a_store_of_other_shards_is_made_again(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    opened(manifest)
    shard = manifest.shards("train")[0]
    samples = list(read_shard(manifest.path(shard)))
    first = dataclasses.replace(samples[0], image=picture(99))
    changed = _shard(manifest.path(shard), shard.file, [first, *samples[1:]], shard.histogram)
    newer = dataclasses.replace(manifest, splits={"train": (changed, *manifest.shards("train")[1:])})
    reporter = SilentReporter()
    store = open_store(newer, "train", 32, reporter, 0.01)
    assert (store.images[0] == np.asarray(decode(picture(99)))).all()
    assert any("decoding again" in line for line in reporter.lines)


def test_a_damaged_store_says_what_to_delete(recipe: RecipeConfig, build: Build) -> None:
    manifest = build(recipe)
    opened(manifest)
    images = manifest.root / "store" / "train-32" / "images.npy"
    images.write_bytes(images.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"images\.npy: cannot be read .* delete"):
        opened(manifest)


def _shard(path: Path, file: str, samples: list[Sample], histogram: dict[str, int]) -> ShardInfo:
    written = write_shard(path, samples)
    return ShardInfo(file, written.samples, written.bytes, written.sha256, histogram)


def _foreign(root: Path, samples: list[Sample], histogram: dict[str, int]) -> Manifest:
    """A data set as another program may have made it."""
    shard = _shard(root / "train" / "00000.tar", "train/00000.tar", samples, histogram)
    return Manifest(root, "foreign", NAMES, "0" * 16, {"train": (shard,)}, {})


def test_corrupt_images_are_left_out_up_to_the_limit(tmp_path: Path) -> None:
    samples = [Sample(f"{i:04d}", picture(i) if i != 3 else picture(3)[:400], "jpg", label=i % 3) for i in range(10)]
    manifest = _foreign(tmp_path, samples, {"ant": 4, "bee": 3, "cow": 3})
    with pytest.raises(UserError, match=r"1 of 10 train images cannot be decoded, above max_corrupt=0.05 \(e.g. 0003"):
        opened(manifest, limit=0.05)
    reporter = SilentReporter()
    store = open_store(manifest, "train", 32, reporter, 0.1)
    assert len(store.images) == len(store.labels) == len(store.keys) == 9
    assert store.keys[3] == "0004"
    assert (store.images[3] == np.asarray(decode(picture(4)))).all()
    assert [entry["key"] for entry in store.excluded] == ["0003"]
    assert any("1 corrupt images left out: 0003" in line for line in reporter.lines)


@pytest.mark.parametrize(
    ("samples", "histogram", "says"),
    [
        ([Sample("a", picture(1), "jpg", label=3)], {"ant": 1}, "label 3 on 1 samples, expected 0 to 2"),
        ([Sample("a", picture(1), "jpg")], {"ant": 1}, "label None on 1 samples"),
        ([Sample("a", picture(1), "jpg", label=0)], {"bee": 1}, "other numbers of images a class"),
    ],
)
def test_samples_that_contradict_the_manifest_are_refused(
    tmp_path: Path, samples: list[Sample], histogram: dict[str, int], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        opened(_foreign(tmp_path, samples, histogram))


def test_other_sizes_are_resized_and_cut_to_the_centre(tmp_path: Path) -> None:
    samples = [
        Sample("a", picture(1, (64, 48), "PNG"), "png", label=0),
        Sample("b", picture(2, (20, 40)), "jpg", label=1),
        Sample("c", picture(3, (16, 16)), "jpg", label=2),
    ]
    store = opened(_foreign(tmp_path, samples, {"ant": 1, "bee": 1, "cow": 1}), size=16)
    assert store.images.shape == (3, 16, 16, 3)
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 255
    from PIL import Image

    assert (fit_square(Image.fromarray(wide), 32) == 255).all()
    assert fit_square(Image.new("L", (3, 500), 7), 8).tolist() == [[[7, 7, 7]] * 8] * 8


def test_a_class_without_any_image_in_a_split_is_named(tmp_path: Path) -> None:
    samples = [Sample("a", picture(1), "jpg", label=0), Sample("b", picture(2), "jpg", label=2)]
    with pytest.raises(UserError, match="train split: no image of class bee; expected at least one of every class"):
        opened(_foreign(tmp_path, samples, {"ant": 1, "cow": 1}))


def test_a_split_that_is_not_there_is_named(recipe: RecipeConfig, build: Build) -> None:
    manifest = dataclasses.replace(build(recipe), splits={})
    with pytest.raises(UserError, match="has no validation images"):
        opened(manifest, "validation")


def test_reading_stores_and_partitions_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = ("open_clip", "transformers", "deepspeed", "accelerate", "pyarrow", "webdataset")
    modules = ", ".join(f"fedscale.data.{name}" for name in ("store", "partition", "manifest", "augment"))
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
