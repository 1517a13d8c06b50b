"""Batch norm over two ranks gives what one process gives for the whole batch, however the batch is cut."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fedscale.distributed.batch_norm import SyncedBatchNorm, synchronise_batch_norms
from tests.ranks import ranks

RANKS = """
import copy
import sys
import torch, torch.distributed as dist
from torch import nn
from fedscale.distributed.batch_norm import SyncedBatchNorm, synchronise_batch_norms

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, affine=False)),
        nn.Flatten(), nn.BatchNorm1d(64, momentum=0.3), nn.Linear(64, 5),
    ).double()


def close(found, expected, name):
    far = (found - expected).abs().max()
    assert far <= 1e-12 * (1 + expected.abs().max()), (case, name, far)


for case, sizes in {"even": (4, 4), "uneven": (7, 2), "stand-in": (5, 0), "no samples": (0, 6)}.items():
    alone, shared = net(), net()
    synchronise_batch_norms(shared, dist.new_group([0, 1]) if case == "even" else None)
    synced = [m for m in shared.modules() if isinstance(m, SyncedBatchNorm)]
    assert len(synced) == 3
    assert list(shared.state_dict()) == list(alone.state_dict())
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        whole = torch.randn(sum(sizes), 3, 6, 6, generator=generator, dtype=torch.float64) * 3 + 1
        part = whole[: sizes[0]] if rank == 0 else whole[sizes[0] :]
        if case == "stand-in" and rank == 1:
            part = torch.full((1, 3, 6, 6), 100.0, dtype=torch.float64)
            for module in synced:
                module.counted = torch.zeros(1, dtype=torch.float64)
        whole, part = whole.requires_grad_(), part.detach().clone().requires_grad_()
        expected, found = alone(whole), shared(part)
        first = sizes[0] * rank
        mine = slice(first, first + sizes[rank])
        if sizes[rank]:
            close(found, expected[mine], "outputs")
        expected.square().mul(torch.arange(5.0)).sum().backward()
        found[: sizes[rank]].square().mul(torch.arange(5.0)).sum().backward()
        if sizes[rank]:
            close(part.grad, whole.grad[mine], "images")
        else:
            assert not part.grad.any(), "a sample that stands in has no gradient"
        for (name, one), two in zip(alone.named_parameters(), shared.parameters(), strict=True):
            dist.all_reduce(two.grad)
            close(two.grad, one.grad, name)
        with torch.no_grad():
            for model in (alone, shared):
                for parameter in model.parameters():
                    parameter -= 1e-4 * parameter.grad
                    parameter.grad = None
    for name, value in alone.state_dict().items():
        assert shared.state_dict()[name].dtype == value.dtype
        close(shared.state_dict()[name], value, name)
    probe = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    close(copy.deepcopy(shared).eval()(probe) if case != "even" else shared.eval()(probe), alone.eval()(probe), "eval")

case, norm = "half", nn.BatchNorm2d(2)
shared = SyncedBatchNorm(copy.deepcopy(norm), None)
images = torch.randn(4, 2, 5, 5).add(30).bfloat16()
every = [torch.empty_like(images) for _ in range(2)]
dist.all_gather(every, images)
norm(torch.cat(every).float())
assert shared(images).dtype == torch.bfloat16
assert (shared.running_var - norm.running_var).abs().max() < 1e-5
dist.destroy_process_group()
sys.stdout.write(f"fine {rank}\\n")  # one write: the ranks share the pipe
"""


@pytest.mark.slow
def test_two_ranks_with_uneven_parts_give_what_one_process_gives(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANKS)
    done = ranks(2, script)
    assert done.returncode == 0, done.stderr[-9000:]
    assert sorted(done.stdout.split("\n")) == ["", "fine 0", "fine 1"]


def test_a_norm_keeps_its_parameters_and_mode_and_one_without_averages_is_refused() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3).eval(), nn.GroupNorm(1, 3))
    norm, before = net[0], copy.deepcopy(net.state_dict())
    synchronise_batch_norms(net)
    synced = net[0]
    assert isinstance(synced, SyncedBatchNorm) and synced.weight is norm.weight and not synced.training
    assert isinstance(net[1], nn.GroupNorm)
    assert net.state_dict().keys() == before.keys()
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(synced(images), norm(images))
    with pytest.raises(ValueError, match="moving average"):
        SyncedBatchNorm(nn.BatchNorm2d(3, track_running_stats=False), None)
