"""Groups follow the training counts; accuracies follow the confusion matrix."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedscale.config.schema import Config, GroupsConfig
from fedscale.errors import UserError
from fedscale.evaluation import class_groups, evaluate

RANK = GroupsConfig(kind="rank", many_classes=3, few_classes=3)
COUNT = GroupsConfig(kind="count", many_over=100, few_under=20)


def test_rank_groups_are_the_first_and_last_classes_by_count() -> None:
    assert class_groups([5, 90, 80, 70, 60, 50, 40, 30, 20, 10], RANK) == {
        "many": [1, 2, 3],
        "medium": [4, 5, 6, 7],
        "few": [0, 8, 9],
    }


def test_count_groups_have_open_many_and_few_and_closed_medium() -> None:
    assert class_groups([101, 100, 20, 19], COUNT) == {"many": [0], "medium": [1, 2], "few": [3]}


def test_too_few_classes_for_rank_groups_are_refused() -> None:
    with pytest.raises(UserError, match="many_classes \\+ few_classes = 6, expected at most the 4 classes"):
        class_groups([4, 3, 2, 1], RANK)


@dataclass
class Images:
    images: np.ndarray
    labels: np.ndarray
    split: str = "test"


class Reads(nn.Module):
    """Predicts the class that the red channel of the first pixel spells."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        value = (images[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(value, 4).float()


def spelt(*classes: int) -> np.ndarray:
    images = np.zeros((len(classes), 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = classes
    return images


def config(**groups: int) -> Config:
    from fedscale.config import overlaid

    return overlaid(
        Config(),
        {
            "data": {"mean": [0, 0, 0], "std": [1, 1, 1]},
            "eval": {"batch_size": 2, "groups": {"kind": "count", **groups}},
        },
    )


def test_accuracies_are_those_of_the_confusion_matrix() -> None:
    store = Images(spelt(0, 0, 1, 0, 2, 3, 3, 3), np.array([0, 0, 0, 1, 2, 3, 3, 2]))
    model = Reads().train()
    result = evaluate(model, store, list("abcd"), [200, 50, 50, 5], config())
    assert result.confusion == [[2, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 2]]
    assert result.all == pytest.approx(100 * 5 / 8)
    assert result.per_class == pytest.approx([200 / 3, 0, 50, 100])
    assert (result.many, result.medium, result.few) == pytest.approx((200 / 3, 25, 100))
    assert model.training


def test_an_empty_group_has_no_accuracy_and_an_empty_class_is_refused() -> None:
    store = Images(spelt(0, 1), np.array([0, 1]))
    assert evaluate(Reads(), store, ["a", "b"], [50, 50], config()).few is None
    with pytest.raises(UserError, match="no image of class c"):
        evaluate(Reads(), store, ["a", "b", "c"], [50, 50, 50], config())
