"""Ratio Loss weighs classes by how much more than others' their images change the weights that are theirs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Batch, Problem, method_class
from fedscale.federated.methods.ratio_loss import ratios
from tests.federated.engine_support import SIZES
from tests.federated.methods.support import (
    CLASSES,
    Step,
    assert_a_saved_round_goes_on,
    assert_rounds_are,
    global_model,
    plainly,
    pool_of,
    set_global,
    state_of,
)

OPTIONS = {"beta": 0.5, "cap": 3.0, "threshold": 0.9}


def plain_ratios(changes: np.ndarray, threshold: float) -> list[float]:
    """The official code's selection and ratio, weight by weight."""
    classes, rows, columns = changes.shape
    own, rest = [0.0] * classes, [0.0] * classes
    for i in range(rows):
        for j in range(columns):
            x = [float(changes[p, i, j]) for p in range(classes)]
            most = max(x)
            near = [p for p in range(classes) if (abs(x[p] / most) > threshold if most else x[p] == most)]
            if len(near) == 1:
                owner = x.index(most)
                own[owner] += x[owner]
                rest[owner] += sum(x[p] for p in range(classes) if p != owner) / (classes - 1)
    return [abs(o) / abs(r) if r else 10.0 for o, r in zip(own, rest, strict=True)]


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_ratios_are_the_official_codes_weight_by_weight(threshold: float) -> None:
    changes = np.random.default_rng(0).normal(size=(5, 5, 8))
    changes[:, 0, 0] = 0.0  # a weight that no class moves
    changes[:, 1, 1] = -np.abs(changes[:, 1, 1])  # and one that all move downwards
    changes[:, 2, :4] *= np.array([3.0, 1.0, 1.0, 1.0, 1.0])[:, None]
    found = ratios(torch.from_numpy(changes), threshold)
    np.testing.assert_allclose(found, plain_ratios(changes, threshold), rtol=1e-12)


def test_known_ratios() -> None:
    # Weight 0 is class 0's: 6 against a mean of 2. Weight 1 is class 1's: 4 against −1 and 0. Nobody owns weight 2.
    changes = torch.tensor([[6.0, -1.0, 1.0], [1.0, 4.0, 0.9], [3.0, 0.0, 0.0]]).view(3, 1, 3)
    assert ratios(changes, 0.8).tolist() == [3.0, 8.0, 10.0]


def test_three_rounds_of_every_backend_are_the_papers(tmp_path: Path) -> None:
    pool, weights = pool_of(), torch.ones(CLASSES, dtype=torch.float64)

    def responses(engine: Engine) -> np.ndarray:
        """What two steps on each class's four images change of the classifier's weights."""
        changes = []
        for label in range(CLASSES):
            model = global_model(engine).train()
            before = model.classifier.weight.detach().clone()
            optimizer = torch.optim.SGD(model.parameters(), engine.config.federate.lr, 0.5)
            for _ in range(2):
                optimizer.zero_grad()
                logits = model(pool.images[pool.labels == label])
                nn.functional.cross_entropy(logits, torch.full((4,), label)).backward()
                optimizer.step()
            changes.append((model.classifier.weight.detach() - before).numpy())
        return np.stack(changes)

    def algorithm(engine: Engine, number: int) -> Mapping[str, Tensor]:
        nonlocal weights

        def objective(step: Step) -> Tensor:
            losses = nn.functional.cross_entropy(step.logits, step.labels, reduction="none")
            return (weights[step.labels] * losses).mean()

        cohort = engine.cohort(number)
        states = {client: state_of(plainly(engine, client, objective, number)) for client in cohort}
        total = sum(SIZES[client] for client in cohort)
        mean = {n: sum(SIZES[c] / total * states[c][n] for c in cohort) for n in states[cohort[0]]}
        set_global(engine, mean)
        found = plain_ratios(responses(engine), 0.9)
        weights = torch.tensor([1.0 + 0.5 * min(r, 3.0) for r in found], dtype=torch.float64)
        assert len(weights.unique()) > 1
        return mean

    federate = {"method": "ratio_loss", "options": OPTIONS, "momentum": 0.5, "local_epochs": 2}
    assert_rounds_are(tmp_path, algorithm, pool=pool, **federate)


def test_the_loss_of_each_sample_is_weighted_by_its_class() -> None:
    method: Any = method_class("ratio_loss")(FederateConfig(method="ratio_loss"), Problem(2, 4, 8))
    assert method.pool_images == 2 * 63
    logits, labels = torch.zeros(1, 2, 2, dtype=torch.float64), torch.tensor([[0, 1]])
    plain = method.loss(Batch(logits, labels, shared={"excess": torch.zeros(2, dtype=torch.float64)}))
    weighted = method.loss(Batch(logits, labels, shared={"excess": torch.tensor([0.5, 2.0], dtype=torch.float64)}))
    np.testing.assert_allclose(plain, np.log([[2, 2]]))
    np.testing.assert_allclose(weighted, np.log([[2, 2]]) * [1.5, 3.0])


def test_a_restart_goes_on_with_the_ratios(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, pool_of(), method="ratio_loss", options=OPTIONS)


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match=r"federate\.options\.threshold=1.5: expected a share above 0 and below 1"):
        FederateConfig(method="ratio_loss", options={"threshold": 1.5})
