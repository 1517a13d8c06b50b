"""FedRS restricts the logits of classes that a client lacks, or has little of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Batch, Problem, method_class
from tests.federated.engine_support import trained
from tests.federated.methods.support import (
    CLIENTS,
    Step,
    assert_every_backend_trains,
    counts_of,
    engine_of,
)


def made(classes: int, **options: Any) -> Any:
    return method_class("fedrs")(FederateConfig(method="fedrs", options=options), Problem(classes, 0, 8))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_every_backend_trains_as_the_restricted_softmax_says(kind: str, tmp_path: Path) -> None:
    def objective(engine: Engine, client: int, step: Step) -> Tensor:
        psi = []
        for count in step.counts.tolist():
            soft = 0.3 + 0.7 * count / float(step.counts.max())
            psi.append(soft if kind == "soft" else 1.0 if count else 0.3)
        powers = torch.exp(torch.tensor(psi, dtype=torch.float64) * step.logits)
        return -(powers.gather(1, step.labels[:, None])[:, 0] / powers.sum(1)).log().mean()

    def begin(engine: Engine) -> None:
        lacking = [client for client in CLIENTS if 0 in counts_of(engine, client)]
        assert 0 < len(lacking) < len(CLIENTS), "some clients lack a class, others do not"

    options = {"kind": kind, "alpha": 0.3}
    assert_every_backend_trains(tmp_path, objective, begin, method="fedrs", options=options, momentum=0.5)


def test_the_scales_of_known_counts() -> None:
    counts = torch.tensor([[4, 2, 0], [0, 0, 1]])
    hard, soft = (made(3, alpha=0.5, kind=kind).scale(counts) for kind in ("hard", "soft"))
    assert hard.tolist() == [[1.0, 1.0, 0.5], [0.5, 0.5, 1.0]]
    assert soft.tolist() == [[1.0, 0.75, 0.5], [0.5, 0.5, 1.0]]


def test_a_class_that_the_client_lacks_is_pushed_away_less() -> None:
    method = made(3, alpha=0.5)
    logits = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    losses = method.loss(Batch(logits, torch.tensor([[0]]), {"scale": method.scale(torch.tensor([[5, 5, 0]]))}))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient[0, 0], torch.tensor([-2 / 3, 1 / 3, 1 / 6], dtype=torch.float64))


def test_alpha_of_one_is_fedavg_in_any_groups(tmp_path: Path) -> None:
    plain = trained(engine_of("loop", tmp_path))
    for way in ("loop", "batched 3"):
        whole = trained(engine_of(way, tmp_path, method="fedrs", options={"alpha": 1.0}))
        assert (whole - plain).abs().max() < 1e-9
        half = trained(engine_of(way, tmp_path / "half", method="fedrs"))
        assert (half - plain).abs().max() > 1e-4


def test_alpha_is_a_share() -> None:
    with pytest.raises(UserError, match=r"federate\.options\.alpha=1.5: expected a value from 0 to 1"):
        made(3, alpha=1.5)
