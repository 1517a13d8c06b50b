"""The accumulated mean is the mean."""

import pytest
import torch

from fedscale.federated.aggregate import WeightedMean


def test_it_is_the_weighted_mean_of_float64_in_any_order() -> None:
    torch.manual_seed(0)
    vectors, weights = torch.randn(6, 1000), torch.tensor([1.0, 5, 2, 9, 300, 4])
    reference = (weights[:, None].double() * vectors.double()).sum(0) / weights.sum().double()
    for order in (range(6), reversed(range(6))):
        mean = WeightedMean(vectors[0])
        for i in order:
            mean.add(vectors[i], float(weights[i]))
        assert torch.equal(mean.mean(torch.float32), reference.float())


def test_the_mean_of_no_client_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="mean of no client"):
        WeightedMean(torch.zeros(3)).mean(torch.float32)
