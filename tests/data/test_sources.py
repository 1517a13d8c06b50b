import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedscale.config import RecipeConfig
from fedscale.config.schema import OpenPoolConfig, ShapesConfig
from fedscale.data.sources import open_source
from fedscale.data.sources.cifar import load_batch
from fedscale.errors import UserError

from .conftest import NAMES, picture, write_parquet


def open_as(form: str, folder: Path | None, **keys: object):
    return open_source(RecipeConfig(format=form, source=None if folder is None else str(folder), **keys))  # type: ignore[arg-type]


def names_read(source, split: str, indices: list[int]) -> list[str]:
    return [original.name for original in source.read(split, np.array(indices))]


def test_parquet_reads_the_wanted_rows_across_row_groups(parquet: Path) -> None:
    source = open_as("parquet", parquet)
    assert source.class_names == NAMES
    assert source.labels("train").tolist() == [0, 1, 2] * 20
    assert source.labels("test").tolist() == [2, 1, 0] * 4
    assert names_read(source, "train", [0, 6, 7, 13, 59]) == [
        "ant/0.jpg",
        "ant/6.jpg",
        "bee/7.jpg",
        "bee/13.jpg",
        "cow/59.jpg",
    ]
    original = next(iter(source.read("test", np.array([5]))))
    assert original.image == picture(5)


def test_parquet_with_plain_bytes_in_several_files_below_split_folders(tmp_path: Path) -> None:
    for split, label in (("train", 0), ("validation", 1)):
        for part in range(2):
            table = pa.table({"image": [picture(part), picture(9)], "fine_label": pa.array([label, label + part])})
            (tmp_path / "default" / split).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, tmp_path / "default" / split / f"{part:04d}.parquet")
    source = open_as("parquet", tmp_path)
    assert source.class_names == ()
    assert source.labels("train").tolist() == [0, 0, 0, 1]
    assert source.labels("test").tolist() == [1, 1, 1, 2]
    assert [o.image for o in source.read("train", np.array([2, 3]))] == [picture(1), picture(9)]


def test_a_test_split_with_hidden_labels_gives_way_to_the_validation_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1])
    write_parquet(tmp_path / "validation-0.parquet", [1])
    table = pa.table({"img": [picture(1)], "label": pa.array([-1])})
    pq.write_table(table, tmp_path / "test-0.parquet")
    assert open_as("parquet", tmp_path).labels("test").tolist() == [1]


def test_parquet_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \*\.parquet files"):
        open_as("parquet", tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable parquet file"):
        open_as("parquet", tmp_path)
    pq.write_table(pa.table({"picture": [b"x"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="no image column; expected image or img among picture, label"):
        open_as("parquet", tmp_path)
    pq.write_table(pa.table({"image": [b"x"], "label": ["cat"]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="whole numbers in column `label`"):
        open_as("parquet", tmp_path)


def _folder(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number))
    return root


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    source = open_as(
        "folder", _folder(tmp_path, "bee/2.jpg", "bee/10.PNG", "ant/x.jpeg", "ant/notes.txt", ".git/a.jpg")
    )
    assert source.class_names == ("ant", "bee")
    assert source.labels("train").tolist() == [0, 1, 1]
    assert source.labels("test").tolist() == []
    assert names_read(source, "train", [2, 0]) == ["bee/2.jpg", "ant/x.jpeg"]


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_folder_with_train_and_test(tmp_path: Path, test: str) -> None:
    root = _folder(tmp_path, "train/bee/1.jpg", "train/ant/2.jpg", f"{test}/ant/3.jpg", f"{test}/bee/4.jpg")
    source = open_as("folder", root, class_names=("bee", "ant"))
    assert source.class_names == ("bee", "ant")
    assert names_read(source, "train", [0, 1]) == ["train/bee/1.jpg", "train/ant/2.jpg"]
    assert names_read(source, "test", [0, 1]) == [f"{test}/bee/4.jpg", f"{test}/ant/3.jpg"]


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class folders"):
        open_as("folder", tmp_path)
    root = _folder(tmp_path, "ant/1.jpg", "bee/1.jpg")
    with pytest.raises(UserError, match="cow is not both listed and a folder"):
        open_as("folder", root, class_names=("ant", "bee", "cow"))


@pytest.mark.parametrize("form", ["folder", "parquet", "imagenet", "cifar-python"])
def test_a_missing_source_says_how_to_name_it(form: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source=DIR"):
        open_as(form, None)
    with pytest.raises(UserError, match=r"absent: no such folder.*source=DIR"):
        open_as(form, tmp_path / "absent")


IMAGENET = (
    "train/n02/b1.JPEG",
    "train/n02/b2.JPEG",
    "train/n01/a1.JPEG",
    "train/n01/a2.JPEG",
    "val/n01/v1.JPEG",
    "val/n02/v2.JPEG",
)


def test_imagenet_with_lists_leaves_the_rest_for_the_pool(tmp_path: Path) -> None:
    root = _folder(tmp_path, *IMAGENET)
    (root / "lt_train.txt").write_text("train/n02/b2.JPEG 0\ntrain/n01/a1.JPEG 1\n")
    (root / "lt_test.txt").write_text("val/n01/v1.JPEG 1\n")
    source = open_as("imagenet", root, train_list="lt_train.txt", test_list="lt_test.txt", class_names=("bee", "ant"))
    assert source.class_names == ("bee", "ant")
    assert source.labels("train").tolist() == [0, 0, 1, 1]
    assert source.listed is not None
    assert names_read(source, "train", source.listed.tolist()) == ["train/n02/b2.JPEG", "train/n01/a1.JPEG"]
    assert source.labels("test").tolist() == [1]
    alone = open_as("imagenet", root, train_list="lt_train.txt", open_pool=OpenPoolConfig(enabled=False))
    assert alone.labels("train").tolist() == [0, 1]
    assert alone.labels("test").tolist() == [0, 1]


def test_imagenet_without_lists_takes_all(tmp_path: Path) -> None:
    source = open_as("imagenet", _folder(tmp_path, *IMAGENET))
    assert source.class_names == ("n01", "n02")
    assert source.labels("train").tolist() == [0, 0, 1, 1]
    assert source.listed is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train/n01/a1.JPEG\n", "line 1 is not `path label`"),
        ("train/n01/a1.JPEG 0\n../secret.JPEG 1\n", "line 2 is not `path label`"),
        ("/etc/a.JPEG 1\n", "line 1 is not `path label`"),
        ("", "an empty list"),
        ("train/n01/a9.JPEG 0\n", "is not in the source"),
        ("train/n01/a1.JPEG 0\ntrain/n01/a1.JPEG 0\n", "lists an image twice"),
        ("train/n01/a1.JPEG 0\ntrain/n01/a2.JPEG 1\n", "folder n01 has labels 0 and 1"),
        ("train/n01/a1.JPEG 0\ntrain/n02/b1.JPEG 0\n", "two folders share a label"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, text: str, says: str) -> None:
    root = _folder(tmp_path, *IMAGENET)
    (root / "list.txt").write_text(text)
    with pytest.raises(UserError, match=says):
        open_as("imagenet", root, train_list="list.txt")


def _cifar10(root: Path) -> np.ndarray:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (12, 3072), dtype=np.uint8)
    root.mkdir(parents=True)
    for number in range(5):
        batch = {b"data": data[2 * number : 2 * number + 2], b"labels": [number, 9], b"filenames": [b"a.png", b"b.png"]}
        (root / f"data_batch_{number + 1}").write_bytes(pickle.dumps(batch, protocol=2 + number % 4))
    (root / "test_batch").write_bytes(pickle.dumps({"data": data[10:], "labels": [3, 4]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    return data


def test_cifar10_pickles_become_png(tmp_path: Path) -> None:
    data = _cifar10(tmp_path / "cifar-10-batches-py")
    source = open_as("cifar-python", tmp_path)
    assert source.class_names == tuple(f"c{i}" for i in range(10))
    assert source.labels("train").tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert source.labels("test").tolist() == [3, 4]
    for original, row in zip(source.read("train", np.array([7, 0])), (7, 0), strict=True):
        image = Image.open(io.BytesIO(original.image))
        assert image.format == "PNG"
        assert (np.asarray(image).transpose(2, 0, 1).reshape(-1) == data[row]).all()
    first, again = (next(iter(source.read("test", np.array([1])))) for _ in range(2))
    assert first == again


def test_cifar100_uses_fine_labels(tmp_path: Path) -> None:
    data = np.zeros((2, 3072), dtype=np.uint8)
    for file in ("train", "test"):
        (tmp_path / file).write_bytes(pickle.dumps({"data": data, "fine_labels": [7, 99], "coarse_labels": [1, 2]}))
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"n%d" % i for i in range(100)]}))
    source = open_as("cifar-python", tmp_path)
    assert len(source.class_names) == 100
    assert source.labels("train").tolist() == [7, 99]
    assert names_read(source, "test", [1]) == ["test/1"]


class _Call:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


class _Print:
    def __reduce__(self):
        return (print, ("called",))


class _Decompress:
    def __reduce__(self):
        import codecs

        return (codecs.encode, ("x" * 9, "rot13"))


@pytest.mark.parametrize("payload", [_Call(), {"data": _Print()}, _Decompress(), np.random.default_rng(1)])
def test_a_pickle_that_is_more_than_arrays_is_refused(
    payload: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match="refused"):
        load_batch(tmp_path / "batch")
    assert not (tmp_path / "touched").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1])])
def test_a_file_that_is_no_batch_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match="refused"):
        load_batch(tmp_path / "batch")


def test_shapes_are_a_function_of_the_seed() -> None:
    def images(seed: int, split: str) -> list[bytes]:
        source = open_source(RecipeConfig(format="shapes", seed=seed, shapes=ShapesConfig(3, 2)))
        assert len(source.class_names) == 10
        assert np.bincount(source.labels(split)).tolist() == [3 if split == "train" else 2] * 10
        return [original.image for original in source.read(split, np.array([0, 1, 7]))]

    assert images(7, "train") == images(7, "train")
    assert len({*images(7, "train"), *images(7, "test"), *images(8, "train")}) == 9
