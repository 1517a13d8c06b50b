"""A method's loss is one graph of tensor operations, forward and backward, as CUDA graphs and torch.compile want it."""

from typing import Any

import pytest
import torch

from fedscale.config.schema import FederateConfig
from fedscale.federated.methods import Batch, Problem, method_class

LANES, SIZE, CLASSES, FEATURES = 2, 4, 3, 5
CASES: list[tuple[str, dict[str, Any]]] = [
    ("logit_adjustment", {}),
    ("logit_adjustment", {"prior": "local"}),
    ("balanced_softmax", {}),
    ("fedfocal", {}),
    ("fedrs", {}),
    ("moon", {}),
    ("ratio_loss", {}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_loss_is_one_graph_with_the_same_numbers(name: str, options: dict[str, Any]) -> None:
    config = FederateConfig(method=name, options=options)
    method, draws = method_class(name)(config, Problem(CLASSES, FEATURES, 8)), torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    logits, features = drawn(LANES, SIZE, CLASSES).requires_grad_(), drawn(LANES, SIZE, FEATURES).requires_grad_()
    tallies = {name: drawn(LANES, *shape) for name, shape in method.tallies.items()}
    if "shift" in tallies:
        tallies["shift"][1, 2] = -torch.inf  # a class that lane 1 lacks
    shared = {name: drawn(*shape) for name, shape in method.shared.items()}
    others = {role: drawn(LANES, SIZE, FEATURES) for role in method.compares}
    labels = torch.tensor([[0, 1, 2, 0], [1, 0, 1, 1]])

    def losses(logits: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return method.loss(Batch(logits, labels, tallies, shared, {}, features, others))

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(logits, features), losses(logits, features)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(part.sum(), [logits, features], allow_unused=True) for part in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert theirs is None or theirs.isfinite().all()
