"""CIFAR-100-LT end to end through the reader of `cifar-100-python`, on an archive of that form with few images."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedscale.cli import app
from fedscale.config import load_config
from fedscale.data.longtail import long_tail_counts
from fedscale.data.plan import make_plan
from fedscale.data.sources import open_source

PER_CLASS = {"train": 12, "test": 2}
SMALL = ["configs/overlays/if10.yaml", "data.format=cifar-python", "data.open_pool.reserve=2",
         "data.open_pool.validation=1", "variant=fedavg", "model.name=linear", "device=cpu", "federate.rounds=1",
         "federate.local_epochs=1", "federate.backend=loop"]  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cifar-100-python` as it is published: protocol 2, keys in bytes, coarse labels beside fine ones."""
    root = tmp_path_factory.mktemp("cifar") / "cifar-100-python"
    root.mkdir()
    draws = np.random.default_rng(5)
    for split, count in PER_CLASS.items():
        fine = draws.permutation(np.repeat(np.arange(100), count))
        batch = {
            b"data": draws.integers(0, 256, (len(fine), 3072), dtype=np.uint8),
            b"fine_labels": fine.tolist(),
            b"coarse_labels": (fine // 5).tolist(),
            b"filenames": [b"image_%d.png" % number for number in range(len(fine))],
            b"batch_label": split.encode(),
        }
        (root / split).write_bytes(pickle.dumps(batch, protocol=2))
    names = {b"fine_label_names": [b"fine_%d" % c for c in range(100)], b"coarse_label_names": [b"coarse"] * 20}
    (root / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def test_a_round_of_the_shipped_config_runs_on_the_archive(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["federate", "configs/cifar100_lt.yaml", *SMALL, f"data.source={archive}"])
    assert done.exit_code == 0, done.output
    evaluation = json.loads((tmp_path / "runs/cifar100_lt/fedavg-s7/federate/evaluation.json").read_text())
    assert evaluation["class_names"] == [f"fine_{c}" for c in range(100)]
    assert evaluation["train_counts"] == long_tail_counts(10, 10, 100)
    assert np.sum(evaluation["confusion"]) == 200
    assert evaluation["groups"]["few"] == list(range(100))  # fewer than 20 images each: METHOD's groups go by count


@pytest.mark.parametrize(
    ("config", "per_class", "totals"),
    [
        ("cifar10_lt", 5000, {100: 12_406, 50: 13_996, 10: 20_431}),
        ("cifar100_lt", 500, {100: 10_847, 50: 12_608, 10: 19_573}),
    ],
)
def test_the_overlays_give_the_published_numbers_of_client_images(
    config: str, per_class: int, totals: dict[int, int]
) -> None:
    class Balanced:
        """As many training images a class as the original has."""

        in_order, listed = False, None

        def __init__(self, classes: int) -> None:
            self.class_names = tuple(f"c{c}" for c in range(classes))

        def labels(self, split: str) -> np.ndarray:
            return np.repeat(np.arange(len(self.class_names)), per_class if split == "train" else 1)

        def read(self, split: str, indices: np.ndarray):
            raise AssertionError("a plan reads no image")

    for factor, total in totals.items():
        words = [f"configs/{config}.yaml", f"configs/overlays/if{factor}.yaml", "data.open_pool.reserve=0"]
        data = load_config([*words, "data.class_names=[]"]).data
        assert len(make_plan(data, Balanced(data.classes or 0)).splits["train"]) == total


def test_the_readers_labels_are_the_fine_ones(archive: Path) -> None:
    data = load_config(["configs/cifar100_lt.yaml", "data.format=cifar-python", f"data.source={archive.parent}"]).data
    assert np.bincount(open_source(data).labels("train")).tolist() == [12] * 100
