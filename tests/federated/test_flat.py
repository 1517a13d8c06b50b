"""A model behaves the same when its state is one vector, and the states of K clients are one buffer."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fedscale.config.schema import FederateConfig, ModelConfig
from fedscale.federated.clients import Clients
from fedscale.federated.flat import ALIGNED, FlatLayout, FlatModel, LaneBuffer
from fedscale.federated.lanes.state import Blocks, LaneState
from fedscale.federated.methods import method_class
from fedscale.models import build_model


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(width=4), 3)


def used(layout: FlatLayout) -> torch.Tensor:
    """bool [size]: which elements of a vector belong to a tensor."""
    mask = torch.zeros(layout.size, dtype=torch.bool)
    for entry in layout.entries:
        assert not mask[entry.offset : entry.offset + entry.numel].any(), "entries do not overlap"
        mask[entry.offset : entry.offset + entry.numel] = True
    return mask


# ---- the layout


def test_entries_are_aligned_and_hold_all_floating_state_and_nothing_else() -> None:
    model = small_model()
    layout = FlatLayout.of(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert {entry.name: entry.shape for entry in layout.entries} == {name: t.shape for name, t in state.items()}
    assert not any("num_batches_tracked" in entry.name for entry in layout.entries)
    assert layout.describe() == {entry.name: list(entry.shape) for entry in layout.entries}
    assert all(offset % ALIGNED == 0 for offset in (*layout.offsets, layout.num_parameters, layout.size))
    assert used(layout).sum() == sum(tensor.numel() for tensor in state.values())


def test_trained_parameters_come_first_then_frozen_ones_and_buffers() -> None:
    model = small_model()
    model.get_submodule("conv1").requires_grad_(False)
    layout = FlatLayout.of(model)
    assert [e.name for e in layout.parameters] == [n for n, p in model.named_parameters() if p.requires_grad]
    assert {"conv1.weight", "bn1.running_mean", "bn1.running_var"} <= {e.name for e in layout.statistics}
    assert all(entry.offset < layout.num_parameters for entry in layout.parameters)
    assert all(entry.offset >= layout.num_parameters for entry in layout.statistics)


def test_views_share_the_vector_and_four_dimensional_ones_lie_channels_last() -> None:
    layout = FlatLayout.of(small_model())
    vector = torch.zeros(layout.size)
    views = layout.views(vector)
    for number, entry in enumerate(layout.entries, start=1):
        view = views[entry.name]
        assert view.shape == entry.shape
        dense = torch.channels_last if view.dim() == 4 else torch.contiguous_format
        assert view.is_contiguous(memory_format=dense)
        view.fill_(number)
        assert (vector[entry.offset : entry.offset + entry.numel] == number).all()
    assert (vector[~used(layout)] == 0).all()
    alone = layout.views(vector[: layout.num_parameters])
    assert list(alone) == [entry.name for entry in layout.parameters]
    assert all(torch.equal(view, views[name]) for name, view in alone.items())


# ---- one model


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
    before = copy.deepcopy(model.state_dict())
    flat = FlatModel(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    flat.vector.fill_(7.0)
    assert all((t == 7).all() for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked"))
    assert [p.data_ptr() for p in flat.parameters] == [p.data_ptr() for p in model.parameters()]


def test_a_loaded_vector_gives_the_state_back_counters_included() -> None:
    model = small_model()
    flat = FlatModel(model)
    saved, before = flat.vector.clone(), copy.deepcopy(model.state_dict())
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    with torch.no_grad():
        for parameter in flat.parameters:
            parameter.sub_(parameter.grad)
    assert not torch.equal(flat.vector, saved)
    assert model.state_dict()["bn1.num_batches_tracked"] == before["bn1.num_batches_tracked"] + 1
    flat.load(saved)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_paddings_stay_zero_when_the_model_trains() -> None:
    model = small_model()
    flat = FlatModel(model)
    optimizer = torch.optim.SGD(flat.parameters, 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        optimizer.step()
    assert (flat.vector[~used(flat.layout)] == 0).all()
    assert (flat.vector[used(flat.layout)] != 0).float().mean() > 0.9


def test_tied_parameters_have_one_place_and_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    flat = FlatModel(model)
    assert [entry.name for entry in flat.layout.entries] == ["0.weight", "0.bias", "1.bias"]
    flat.vector.fill_(2.0)
    assert model[1].weight is model[0].weight
    assert (model[1].weight == 2).all()


# ---- K models


@pytest.fixture
def buffer() -> tuple[FlatLayout, LaneBuffer]:
    layout = FlatLayout.of(small_model())
    return layout, LaneBuffer(layout, 5, torch.zeros(1))


def random_vector(layout: FlatLayout, seed: int) -> torch.Tensor:
    """A vector whose paddings are zero."""
    return torch.randn(layout.size, generator=torch.Generator().manual_seed(seed)) * used(layout)


def test_a_lane_gives_back_what_was_set_and_leaves_the_others(buffer: tuple[FlatLayout, LaneBuffer]) -> None:
    layout, lanes = buffer
    vectors = [random_vector(layout, seed) for seed in range(5)]
    for index in (3, 0, 4, 1, 2):
        lanes.set_lane(index, vectors[index])
    for index, vector in enumerate(vectors):
        assert torch.equal(lanes.lane(index, torch.zeros(layout.size)), vector)
        for name, view in layout.views(vector).items():
            assert torch.equal(lanes.blocks()[name][index], view)
    untouched = lanes.lane(2, torch.full((layout.size,), 9.0))
    assert (untouched[~used(layout)] == 9).all(), "paddings of the target are left alone"


def test_filling_makes_every_lane_the_vector(buffer: tuple[FlatLayout, LaneBuffer]) -> None:
    layout, lanes = buffer
    vector = random_vector(layout, 1)
    lanes.data.fill_(float("nan"))
    lanes.fill(vector)
    for index in range(5):
        assert torch.equal(lanes.lane(index, torch.zeros(layout.size)), vector)


def test_blocks_of_a_run_are_contiguous_aligned_views_of_the_buffer(buffer: tuple[FlatLayout, LaneBuffer]) -> None:
    layout, lanes = buffer
    for start, stop in ((0, 5), (0, 2), (1, 4), (4, 5)):
        blocks, flat = lanes.blocks(start, stop), lanes.flat_blocks(start, stop)
        assert list(blocks) == [entry.name for entry in layout.entries]
        for entry, block in zip(layout.entries, flat, strict=True):
            shaped = blocks[entry.name]
            assert block.shape == (stop - start, entry.numel)
            assert shaped.shape == (stop - start, *entry.shape)
            assert block.is_contiguous()
            assert shaped.data_ptr() == block.data_ptr() == lanes.blocks()[entry.name][start].data_ptr()
            assert (block.storage_offset() - start * entry.numel) % ALIGNED == 0
            if shaped.dim() == 5:  # the lanes' kernels together are one channels-last kernel
                assert shaped.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
                assert shaped.flatten(0, 1).data_ptr() == shaped.data_ptr()
            else:
                assert shaped.is_contiguous()


def test_a_buffer_without_statistics_holds_parameters_alone() -> None:
    layout = FlatLayout.of(small_model())
    lanes = LaneBuffer(layout, 3, torch.zeros(1, dtype=torch.float64), statistics=False)
    assert len(lanes.data) == 3 * layout.num_parameters
    assert lanes.data.dtype == torch.float64
    lanes.fill(torch.ones(layout.size, dtype=torch.float64))  # a longer vector will do
    row = lanes.lane(1, torch.zeros(layout.num_parameters, dtype=torch.float64))
    assert torch.equal(row, used(layout)[: layout.num_parameters].double())


def test_paddings_of_all_buffers_stay_zero_while_lanes_work() -> None:
    layout = FlatLayout.of(small_model())
    state = LaneState(layout, 3, torch.zeros(1), method_class("scaffold").roles)
    state.model.fill(random_vector(layout, 0))
    view, method = state.view(0, 2), method_class("scaffold")(FederateConfig(method="scaffold"))
    with torch.no_grad():
        server = [torch.randn(1, *entry.shape) for entry in layout.parameters]
        nothing: Any = None
        steps = torch.tensor([3.0, 2.0])
        clients = Clients(
            nothing, nothing, nothing, nothing, 4, {}, {}, view, {"control": Blocks(server)}, {}, nothing, None, steps
        )
        method.init(clients)
        method.adjust(view, view["start"])
        method.final(clients)
    for buffer in (state.model, *state.roles.values()):
        inside = torch.zeros_like(buffer.data)
        for entry in buffer.entries:
            inside[3 * entry.offset : 3 * (entry.offset + entry.numel)] = 1
        assert (buffer.data[inside == 0] == 0).all()
    assert all(buffer.data.any() for buffer in state.roles.values())


def test_an_update_of_one_tensor_during_backward_does_not_look_like_a_change_of_the_others() -> None:
    layout = FlatLayout.of(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    view = LaneState(layout, 2, torch.zeros(1), ()).view()
    first, second = view.tensors["0.weight"], view.tensors["1.weight"]
    product = (first * first).sum()
    with torch.no_grad():
        second.add_(1)
    torch.autograd.grad(product, first)  # raises if `first` counted as changed
    assert view.parameters[0] is first
