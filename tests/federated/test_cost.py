"""A round's bytes are the model's and the method's; its operations are those of the passes over the clients' images."""

import pytest
import torch
from torch import nn

from fedscale.config.schema import FederateConfig
from fedscale.federated.cost import ImageFlops, image_flops, round_cost
from fedscale.federated.flat import FlatLayout
from fedscale.federated.methods.base import Method
from fedscale.models.resnet import ResNet8


def network() -> nn.Module:
    """A convolution of 4×4 pixels with 12·3 + 4 weights, batch norm with 2·4 statistics, a linear layer of 64·2 + 2."""
    return nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))


PARAMETERS, STATISTICS = 3 * 4 * 4 + 4 + 2 * 4 + 64 * 2 + 2, 2 * 4
ONE = ImageFlops(1, 0)


def test_operations_are_two_a_multiply_add_of_the_forward_and_backward_pass() -> None:
    """Of the convolution no gradient of the image is computed, of the linear layer one of its input."""
    convolution, linear = 16 * 4 * 12, 64 * 2
    assert image_flops(network(), 8) == (2 * (convolution + linear), 2 * (convolution + 2 * linear))


def test_counting_draws_no_random_number_and_leaves_the_model_as_it_is() -> None:
    model = ResNet8(10, 8).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.get_rng_state()
    assert image_flops(model, 32).forward > 0
    assert torch.equal(torch.get_rng_state(), expected) and model.training
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_round_of_fedavg_moves_the_model_with_its_statistics_both_ways() -> None:
    settings = FederateConfig(clients_per_round=2, local_epochs=3)
    cost = round_cost(FlatLayout.of(network()), Method(settings), settings, [10, 20, 30, 40], ImageFlops(400, 600))
    assert cost.bytes_down == cost.bytes_up == 2 * 4 * (PARAMETERS + STATISTICS)
    assert (cost.clients, cost.flops) == (2, 2 * 25 * 3 * 1000)


def test_what_a_method_sends_beside_the_model_counts_where_it_is_sent() -> None:
    class Talks(Method):
        uploads, broadcast = ("a", "b"), ("c",)

        def __init__(self, config: FederateConfig) -> None:
            super().__init__(config)
            self.reports = {"gradients": (10, 7), "count": ()}
            self.shared = {"prototypes": (5, 2)}

    settings = FederateConfig(clients_per_round=1)
    cost = round_cost(FlatLayout.of(network()), Talks(settings), settings, [5], ONE)
    assert cost.bytes_down == 4 * (2 * PARAMETERS + STATISTICS + 10)
    assert cost.bytes_up == 4 * (3 * PARAMETERS + STATISTICS + 71)


def test_a_pass_through_a_model_that_a_method_compares_with_is_the_clients_work_too() -> None:
    class Compares(Method):
        compares = ("start", "previous")

    settings = FederateConfig(clients_per_round=1, local_epochs=2)
    cost = round_cost(FlatLayout.of(network()), Compares(settings), settings, [5], ImageFlops(10, 20))
    assert cost.flops == 5 * 2 * (3 * 10 + 20)


def test_clients_without_images_are_sent_nothing() -> None:
    settings = FederateConfig(clients_per_round=2)
    cost = round_cost(FlatLayout.of(network()), Method(settings), settings, [6, 0, 0, 6], ONE)
    assert cost.clients == 1.0  # of two drawn from four, one holds images on average
    assert cost.bytes_up == pytest.approx(4 * (PARAMETERS + STATISTICS))
