"""A restored model and optimiser go on exactly as the ones that were saved."""

import torch
from torch import nn

from fedscale.distributed.state import load_state, save_state


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.linear, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(self.frozen(x)))


def make() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    trainable = [p for p in net.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trainable if p.ndim > 1], "weight_decay": 0.1}]
    groups.append({"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0})
    return net, torch.optim.AdamW(groups, lr=0.1)


def step(net: Net, optimizer: torch.optim.Optimizer, number: int) -> None:
    torch.manual_seed(number)
    optimizer.zero_grad()
    (net(torch.randn(8, 4)) * torch.randn(4)).pow(2).sum().backward()
    optimizer.step()


def test_training_goes_on_exactly_after_a_restore(tmp_path):
    net, optimizer = make()
    for number in range(3):
        step(net, optimizer, number)
    save_state(tmp_path / "state", net, optimizer)
    restored, its_optimizer = make()
    load_state(tmp_path / "state", restored, its_optimizer)
    for number in range(3, 6):
        step(net, optimizer, number)
        step(restored, its_optimizer, number)
    for name, value in net.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_frozen_weights_are_not_saved_and_not_touched(tmp_path):
    net, optimizer = make()
    step(net, optimizer, 0)
    save_state(tmp_path / "state", net, optimizer)
    restored, its_optimizer = make()
    nn.init.constant_(restored.frozen.weight, 3.0)
    load_state(tmp_path / "state", restored, its_optimizer)
    assert (restored.frozen.weight == 3.0).all()
    assert torch.equal(restored.linear.weight, net.linear.weight)
