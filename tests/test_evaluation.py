"""Groups follow the training counts; accuracies follow the confusion matrix; errors are those of the definitions."""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedscale.calibration import binned
from fedscale.config.schema import Config, GroupsConfig
from fedscale.errors import UserError
from fedscale.evaluation import class_groups, evaluate
from fedscale.fairness import client_accuracies, fairness

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


def test_the_balanced_error_counts_every_class_once() -> None:
    store = Images(spelt(0, 0, 0, 0, 0, 0), np.array([0, 0, 0, 0, 0, 1]))
    result = evaluate(Reads(), store, ["a", "b"], [50, 50], config())
    assert result.all == pytest.approx(100 * 5 / 6)
    assert (result.balanced_accuracy, result.balanced_error) == pytest.approx((50.0, 50.0))


class Confident(nn.Module):
    """Predicts class 0 of two, with the probability (in percent) that the first pixel's red channel spells."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        probability = (images[:, 0, 0, 0] * 255).round().double() / 100
        return torch.stack([probability.log(), (1 - probability).log()], dim=1)


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_images() -> None:
    """Bins of 1/15: 0.61 and 0.65 share one (3 images, 1 right); 0.90 and 0.95 do not (2 and 1 images, all right)."""
    store = Images(spelt(61, 61, 65, 90, 90, 95), np.array([0, 1, 1, 0, 0, 0]))
    result = evaluate(Confident(), store, ["a", "b"], [50, 50], config())
    gaps = 3 * abs((0.61 + 0.61 + 0.65) / 3 - 1 / 3), 2 * abs(0.90 - 1), 1 * abs(0.95 - 1)
    assert result.ece == pytest.approx(100 * sum(gaps) / 6)


def test_a_mean_of_two_ranks_calibration_errors_is_not_the_whole_ones_but_their_sums_are() -> None:
    """Each half alone is off by 40 points, one above and one below; together they are calibrated."""
    store = Images(spelt(*[60] * 10), np.array([0] * 5 + [0] + [1] * 4))
    names, counts = ["a", "b"], [50, 50]
    sums: list[Tensor] = []

    def kept(numbers: Tensor) -> Tensor:
        sums.append(numbers.clone())
        return numbers

    whole = evaluate(Confident(), store, names, counts, config(), summed=kept)
    halves = [slice(0, 5), slice(5, 10)]
    for part in halves:
        with pytest.raises(UserError) if part.start == 0 else nullcontext():  # class b is in the second half alone
            evaluate(Confident(), store, names, counts, config(), part, kept)
    assert sums[0].dtype == torch.int64 and torch.equal(sums[0], sums[1] + sums[2])
    together = evaluate(Confident(), store, names, counts, config(), halves[0], lambda numbers: numbers + sums[2])
    assert together == whole
    assert whole.ece == pytest.approx(0.0, abs=1e-6)


def test_confidences_on_the_edges_of_bins_and_no_numbers_at_all_are_counted() -> None:
    confidences = torch.tensor([0.0, 1 / 15, 1.0, torch.nan], dtype=torch.float64)
    bins = binned(confidences, torch.tensor([False, True, True, False]))
    assert bins[0].tolist() == [3] + [0] * 13 + [1]  # (m/15, (m+1)/15], and 0 in the first
    assert bins[1].tolist() == [1] + [0] * 13 + [1]


def test_a_clients_accuracy_is_the_class_accuracies_weighted_by_its_images() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    clients = [np.array([0, 1, 2, 3]), np.array([4, 5]), np.array([], dtype=np.int64)]
    assert client_accuracies([80.0, 40.0, 0.0], labels, clients).tolist() == [(3 * 80 + 40) / 4, 20.0]


def test_the_worst_decile_is_a_tenth_of_the_clients_and_one_at_least() -> None:
    spread = fairness(np.arange(30.0)[::-1])
    assert (spread.clients, spread.mean, spread.worst_decile) == (30, 14.5, 1.0)
    assert spread.variance == pytest.approx((30**2 - 1) / 12)
    assert fairness(np.array([10.0, 20.0])).worst_decile == 10.0


def test_the_saved_evaluation_tells_of_the_clients() -> None:
    store = Images(spelt(0, 1, 1), np.array([0, 0, 1]))
    judged = evaluate(Reads(), store, ["a", "b"], [1, 1], config())
    saved = judged.over_clients(np.array([0, 1]), [np.array([0]), np.array([1])]).to_dict()
    assert judged.to_dict()["fairness"] is None
    assert saved["fairness"] == {"clients": 2, "mean": 75.0, "variance": 625.0, "worst_decile": 50.0}
