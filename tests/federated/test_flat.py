"""A model behaves the same when its state is one vector."""

import copy

import torch
from torch import nn

from fedscale.config.schema import ModelConfig
from fedscale.federated.flat import FlatModel
from fedscale.models import build_model


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(width=4), 3)


def test_output_and_gradients_are_those_of_the_plain_model() -> None:
    plain = small_model().double()
    flat = FlatModel(copy.deepcopy(plain))
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    plain(images).square().sum().backward()
    flat.model(images).square().sum().backward()
    for reference, parameter in zip(plain.parameters(), flat.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-12, atol=1e-12)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(flat.model.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)


def test_every_parameter_and_statistic_is_a_view_of_the_vector_and_counts_are_not() -> None:
    model = small_model()
    flat = FlatModel(model)
    flat.vector.fill_(7.0)
    state = model.state_dict()
    assert all((t == 7).all() for n, t in state.items() if not n.endswith("num_batches_tracked"))
    statistics = sum(b.numel() for n, b in model.named_buffers() if "running" in n)
    assert len(flat.vector) == sum(p.numel() for p in model.parameters()) + statistics


def test_a_loaded_vector_gives_the_state_back() -> None:
    model = small_model()
    flat = FlatModel(model)
    saved, before = flat.vector.clone(), copy.deepcopy(model.state_dict())
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    with torch.no_grad():
        flat.parameters.sub_(flat.gradient)
    assert not torch.equal(flat.vector, saved)
    assert model.state_dict()["bn1.num_batches_tracked"] == before["bn1.num_batches_tracked"] + 1
    flat.load(saved)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
