"""Balanced batches and the learning rate of stage 3."""

import numpy as np
import pytest

from fedscale.server.align.train import balanced_batches, cosine_lr

LABELS = np.repeat([0, 1, 2, 3], [10, 10, 10, 10])


@pytest.mark.parametrize("batch_size", [1, 3, 6, 7, 16, 40, 64])
def test_each_batch_is_as_even_as_it_can_be(batch_size: int) -> None:
    batches = balanced_batches(LABELS, 4, 10, batch_size, seed=7, epoch=0)
    for batch in batches:
        counts = np.bincount(LABELS[batch], minlength=4)
        assert counts.max() - counts.min() <= 1
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_an_epoch_has_every_image_once() -> None:
    batches = balanced_batches(LABELS, 4, 10, 6, seed=7, epoch=3)
    assert sorted(np.concatenate(batches)) == list(range(40))


def test_a_small_class_is_repeated_evenly() -> None:
    labels = np.repeat([0, 1], [10, 4])
    drawn = np.concatenate(balanced_batches(labels, 2, 10, 5, seed=7, epoch=0))
    assert np.bincount(labels[drawn]).tolist() == [10, 10]
    assert sorted(np.bincount(drawn)[10:]) == [2, 2, 3, 3]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(balanced_batches(LABELS, 4, 10, 8, seed, epoch)).tolist()

    assert order(7, 0) == order(7, 0)
    assert order(7, 0) != order(7, 1)
    assert order(7, 0) != order(8, 0)


def test_the_learning_rate_falls_from_its_peak_to_zero() -> None:
    rates = [cosine_lr(step, 10, 0.4) for step in range(11)]
    assert rates[0] == 0.4 and rates[5] == pytest.approx(0.2) and rates[10] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)
