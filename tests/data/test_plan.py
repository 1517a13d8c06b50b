from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedscale.config import RecipeConfig
from fedscale.config.schema import OpenPoolConfig
from fedscale.data.plan import make_plan
from fedscale.errors import UserError


class FakeSource:
    """`sizes[c]` training images and 2 test images of each class c; it has labels alone."""

    in_order = False

    def __init__(self, *sizes: int, names: tuple[str, ...] = (), listed: list[int] | None = None) -> None:
        self._labels = {"train": np.repeat(np.arange(len(sizes)), sizes), "test": np.repeat(np.arange(len(sizes)), 2)}
        self.class_names = names or tuple("abcdefghij"[: len(sizes)])
        self.listed = None if listed is None else np.array(listed)

    def labels(self, split: str) -> np.ndarray:
        return self._labels[split]

    def read(self, split: str, indices: np.ndarray):
        raise AssertionError("a plan reads no image")


RECIPE = RecipeConfig(
    format="folder", source="here", imbalance_factor=4, open_pool=OpenPoolConfig(reserve=4, validation=2)
)


def counts(plan, split: str) -> list[int]:
    labels = plan.labels["test" if split == "test" else "train"]
    return np.bincount(labels[plan.splits[split]], minlength=len(plan.class_names)).tolist()


def test_reserve_long_tail_validation_and_pool_share_the_images_out() -> None:
    plan = make_plan(RECIPE, FakeSource(20, 20, 20))
    assert counts(plan, "train") == [16, 8, 4]
    assert counts(plan, "validation") == [2, 2, 2]
    assert counts(plan, "pool") == [2, 10, 14]
    assert counts(plan, "test") == [2, 2, 2]
    dealt = np.concatenate([plan.splits[split] for split in ("train", "validation", "pool")])
    assert sorted(dealt.tolist()) == list(range(60))
    assert plan.notes == ()


def test_classes_are_mixed_and_the_seed_alone_decides() -> None:
    first, same, other = (make_plan(replace(RECIPE, seed=seed), FakeSource(20, 20, 20)) for seed in (7, 7, 8))
    assert (first.splits["train"] == same.splits["train"]).all()
    assert first.splits["train"].tolist() != other.splits["train"].tolist()
    labels = first.labels["train"][first.splits["train"]]
    assert (np.diff(labels) != 0).sum() > 5


@pytest.mark.parametrize("split", ["training", "test"])
def test_a_class_without_any_image_is_named_in_one_line(split: str) -> None:
    source = FakeSource(20, 0 if split == "training" else 20, 20, names=("ant", "bee", "cow"))
    if split == "test":
        source._labels["test"] = np.array([0, 2, 2])
    with pytest.raises(UserError, match=f"^source=here: class bee has no {split} images; expected at least 1[^\n]*$"):
        make_plan(RECIPE, source)


def test_without_a_reserve_the_head_is_missing_in_the_pool_and_that_is_said() -> None:
    recipe = replace(RECIPE, open_pool=OpenPoolConfig(reserve=0, validation=2))
    plan = make_plan(recipe, FakeSource(20, 20, 20))
    assert counts(plan, "train") == [20, 10, 5]
    assert counts(plan, "pool") == [0, 10, 15]
    assert "validation" not in plan.splits
    assert "validation: 0 images a class instead of 2" in plan.notes[0]
    assert "no image of a" in plan.notes[1]


def test_without_a_pool_nothing_is_left_over_or_reserved() -> None:
    plan = make_plan(replace(RECIPE, open_pool=OpenPoolConfig(enabled=False)), FakeSource(20, 20, 20))
    assert counts(plan, "train") == [20, 10, 5]
    assert set(plan.splits) == {"train", "test"}


def test_without_a_factor_all_but_the_reserve_is_for_the_clients() -> None:
    plan = make_plan(replace(RECIPE, imbalance_factor=None), FakeSource(20, 9, 5))
    assert counts(plan, "train") == [16, 5, 1]


def test_a_list_decides_by_itself() -> None:
    recipe = replace(RECIPE, imbalance_factor=None, train_list="lt.txt")
    plan = make_plan(recipe, FakeSource(4, 4, listed=[0, 1, 2, 5]))
    assert sorted(plan.splits["train"].tolist()) == [0, 1, 2, 5]
    assert counts(plan, "validation") == [1, 1]
    assert counts(plan, "pool") == [0, 2]
    with pytest.raises(UserError, match="expected one of the two"):
        make_plan(replace(recipe, imbalance_factor=10), FakeSource(4, 4, listed=[0, 5]))
    with pytest.raises(UserError, match="lists no image of class b"):
        make_plan(recipe, FakeSource(4, 4, listed=[0]))


@pytest.mark.parametrize(
    ("changes", "source", "says"),
    [
        ({"classes": 5}, FakeSource(20, 20), "classes=5: more than the 2 that source=here has"),
        ({"classes": 2}, FakeSource(20, 20, 20), "classes: 2 classes, but source=here has 3"),
        ({"class_names": ("x", "y", "z")}, FakeSource(20, 20), "class_names: 3 classes, but source=here has 2"),
        ({"class_names": ("b", "a")}, FakeSource(20, 20), "label 0 is a in source=here, the recipe says b"),
        ({"class_names": ("x", "x")}, FakeSource(20, 20), "x appears twice"),
        ({}, FakeSource(20, 0, 20), "class b has no training images"),
        ({}, FakeSource(20, 20, 5), "class c needs 4 images, source=here has 1"),
        ({}, FakeSource(20, 4), "open_pool.reserve=4: leaves nothing of class b"),
        (
            {"imbalance_factor": 17},
            FakeSource(20, 20),
            "imbalance_factor=17: leaves class b empty; expected 16 or less",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(changes: dict, source: FakeSource, says: str) -> None:
    with pytest.raises(UserError) as error:
        make_plan(replace(RECIPE, **changes), source)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_source_without_class_names_needs_them_from_the_recipe() -> None:
    source = FakeSource(20, 20)
    source.class_names = ()
    with pytest.raises(UserError, match="list them in label order in the recipe"):
        make_plan(RECIPE, source)
    assert make_plan(replace(RECIPE, class_names=("x", "y")), source).class_names == ("x", "y")
    with pytest.raises(UserError, match="class_names: 1 classes"):
        make_plan(replace(RECIPE, class_names=("x",)), source)


def cifar10() -> Path:
    folder = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 parquet at {folder}")
    return folder


@pytest.mark.parametrize(
    ("factor", "reserve", "total"), [(100, 0, 12_406), (50, 0, 13_996), (10, 0, 20_431), (100, 500, 11_165)]
)
def test_the_counts_of_real_cifar10(factor: int, reserve: int, total: int) -> None:
    from fedscale.config import load_recipe
    from fedscale.data.sources import open_source

    words = [f"source={cifar10()}", f"imbalance_factor={factor}", f"open_pool.reserve={reserve}"]
    recipe = load_recipe(["shards/cifar10_lt.yaml", *words])
    plan = make_plan(recipe, open_source(recipe))
    assert len(plan.splits["train"]) == total
    assert len(plan.splits["pool"]) + len(plan.splits.get("validation", ())) == 50_000 - total
    assert counts(plan, "test") == [1000] * 10
    assert plan.class_names[0] == "airplane"
