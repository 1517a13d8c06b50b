"""τ-normalisation changes the model that is judged, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.methods import method_class
from tests.federated.engine_support import make_engine, settings, trained
from tests.federated.methods.support import engine_of


def made(**options: Any) -> Any:
    return method_class("tau_norm")(FederateConfig(method="tau_norm", options=options))


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 2.0])
def test_rows_are_divided_by_their_norms_to_the_tau(tau: float) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 6))
    state = {"classifier.weight": torch.from_numpy(weight), "classifier.bias": torch.ones(4, dtype=torch.float64)}
    found = made(tau=tau).judged(state, {})
    wanted = np.stack([row / np.sqrt(sum(x * x for x in row)) ** tau for row in weight])
    np.testing.assert_allclose(found["classifier.weight"], wanted, rtol=1e-12)
    assert set(found) == set(state) and (found["classifier.bias"] == 0).all()


def test_a_known_row() -> None:
    state = {"classifier.weight": torch.tensor([[3.0, 4.0], [0.0, 0.0]])}
    found = made().judged(state, {})
    torch.testing.assert_close(found, {"classifier.weight": torch.tensor([[0.6, 0.8], [0.0, 0.0]])})


def test_rounds_are_fedavgs_and_the_judged_model_differs_in_its_classifier_alone(tmp_path: Path) -> None:
    engine = engine_of("batched 3", tmp_path, method="tau_norm")
    vector = trained(engine)
    assert torch.equal(vector, trained(engine_of("batched 3", tmp_path)))
    state, judged = (engine.layout.views(v) for v in (vector, engine.judged()))
    for name, tensor in judged.items():
        assert torch.equal(tensor, state[name]) == (not name.startswith("classifier.")), name
    torch.testing.assert_close(judged["classifier.weight"].norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_a_model_without_a_classifier_is_one_line() -> None:
    with pytest.raises(UserError, match=r"federate.method=tau_norm: .* found Sequential"):
        make_engine(settings(method="tau_norm"), "group_norm")
