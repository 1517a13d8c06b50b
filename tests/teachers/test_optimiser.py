import pytest
import torch
from torch import nn

from fedscale.teachers.optimiser import Muon, Schedule, optimisers


def test_every_image_is_drawn_once_an_epoch():
    batches = list(Schedule(epochs=2, batch_size=4).batches(10, torch.Generator().manual_seed(0)))
    drawn = torch.cat(batches)
    assert len(batches) == 5 and sorted(drawn[:10].tolist()) == list(range(10)) == sorted(drawn[10:].tolist())


def test_the_rate_rises_then_falls_to_almost_nothing():
    schedule = Schedule(epochs=1, warmup=0.1)
    assert schedule.factor(0.0) < 0.05 < schedule.factor(0.05) < schedule.factor(0.1)
    assert schedule.factor(0.1) > schedule.factor(0.5) > schedule.factor(1.0) < 0.01


@pytest.mark.parametrize("shape", [(6, 6), (3, 9), (9, 3)])
def test_muon_moves_a_matrix_by_an_almost_orthogonal_one(shape):
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.zeros(shape))
    matrix.grad = torch.randn(shape)
    Muon([matrix], lr=1.0, weight_decay=0.0).step()
    values = torch.linalg.svdvals(matrix.detach()) / max(1.0, shape[0] / shape[1]) ** 0.5
    assert values.min() > 0.4 and values.max() < 1.4


def test_a_loss_that_is_not_finite_stops_the_training():
    model = nn.Linear(2, 1)
    with pytest.raises(RuntimeError, match="diverged"):
        optimisers(model, Schedule(epochs=1)).step(model.weight.sum() * float("nan"), 0.5)
