"""Fed-GraB's controllers are the paper's; they go on from round to round, in whatever group or order clients train."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.engine import Engine
from fedscale.federated.methods import Batch, Problem, method_class
from fedscale.federated.methods.fedgrab import class_shares, tail_of
from fedscale.federated.record import RoundRecord
from tests.federated.engine_support import trained
from tests.federated.methods.support import (
    WAYS,
    Step,
    assert_a_saved_round_goes_on,
    assert_every_backend_trains,
    engine_of,
)

OPTIONS = {"kp": 8.0, "ki": 0.3, "kd": 0.7, "slope": 0.4}
OPEN = (1.0, 0.0, 1.0)


def begin(engine: Engine) -> None:
    """Two classes controlled, and clients with a past."""
    engine.server.shared["open"].copy_(torch.tensor(OPEN))
    engine.kept.copy_(torch.from_numpy(np.random.default_rng(3).normal(0, 0.3, engine.kept.shape)))


class Controllers:
    """A client's controllers, as the paper has them, one number at a time."""

    def __init__(self, row: Tensor) -> None:
        self.delta, self.u, self.e1, self.e2 = (part.tolist() for part in row.view(4, 3))

    def weights(self, c: int) -> tuple[float, float]:
        e = 0.0 - self.delta[c]
        u = self.u[c] + 8.0 * (e - self.e1[c]) + 0.3 * e + 0.7 * (e - 2 * self.e1[c] + self.e2[c])
        self.u[c], self.e2[c], self.e1[c] = (u, self.e1[c], e) if OPEN[c] else (0.0, 0.0, 0.0)
        return tuple((10 / 9) / (1 / 9 + math.exp(-0.4 * sign * self.u[c])) for sign in (1, -1))  # type: ignore[return-value]


def test_every_backend_trains_as_the_papers_controllers_say(tmp_path: Path) -> None:
    past: dict[int, Controllers] = {}

    def objective(engine: Engine, client: int, step: Step) -> Tensor:
        own = past.setdefault(client, Controllers(engine.kept[client]))
        total, size = torch.zeros((), dtype=torch.float64), len(step.labels)
        for c in range(3):
            positive, negative = own.weights(c)
            for i, label in enumerate(step.labels.tolist()):
                p = torch.sigmoid(step.logits[i, c])
                loss, weight = (-p.log(), positive) if label == c else (-(1 - p).log(), negative)
                total = total + weight * loss / size
                gradient = abs(float(p.detach()) - (label == c)) * weight / size
                own.delta[c] += gradient if label == c else -gradient
        return total

    assert_every_backend_trains(tmp_path, objective, begin, method="fedgrab", options=OPTIONS, momentum=0.5)
    assert any(abs(u) > 0.5 for own in past.values() for u in own.u), "the controllers did something"


def losses_after(steps: int, labels: list[int], **options: Any) -> tuple[Any, Batch]:
    method = method_class("fedgrab")(FederateConfig(method="fedgrab", options=options), Problem(3, 4, 2))
    tallies = {name: torch.zeros(1, 3, dtype=torch.float64) for name in method.keeps}
    logits = torch.zeros(1, len(labels), 3, dtype=torch.float64, requires_grad=True)
    batch = Batch(logits, torch.tensor([labels]), tallies, {"open": torch.ones(3)})
    for _ in range(steps):
        losses = method.loss(batch)
    return losses, batch


def test_the_first_step_is_plain_binary_cross_entropy() -> None:
    losses, batch = losses_after(1, [0, 1])
    torch.testing.assert_close(losses, torch.full((1, 2), 3 * math.log(2), dtype=torch.float64))
    # Positives of a batch of two: half of ½ each for classes 0 and 1; negatives: ½ for the other one, ½ twice for 2.
    torch.testing.assert_close(batch.tallies["difference"], torch.tensor([[0.0, 0.0, -0.5]], dtype=torch.float64))


def test_a_class_that_is_never_seen_has_its_negatives_silenced_and_a_common_one_is_left() -> None:
    losses, batch = losses_after(40, [0, 1])
    (gradient,) = torch.autograd.grad(losses.sum(), batch.logits)
    torch.testing.assert_close(gradient[0, 0, :2].abs(), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert float(gradient[0, 0, 2]) < 0.05, "½ without a controller"


def test_without_negatives_only_positives_are_re_weighted() -> None:
    losses, batch = losses_after(40, [0, 1], negatives=False)
    (gradient,) = torch.autograd.grad(losses.sum(), batch.logits)
    assert float(gradient[0, 0, 2]) == 0.5


def test_the_tail_begins_behind_95_per_cent_of_the_norms_above_the_smallest() -> None:
    rows = torch.diag(torch.tensor([5.0, 2.0, 1.0, 1.2, 1.0]))
    shares = class_shares(rows)
    torch.testing.assert_close(shares, torch.tensor([4.0, 1.0, 0.0, 0.2, 0.0]) / 5.2)
    assert tail_of(shares, 0.95).tolist() == [0, 0, 1, 1, 1]  # 5/5.2 = 96% stand before class 3
    assert tail_of(shares, 0.97).tolist() == [0, 0, 1, 0, 1]
    torch.testing.assert_close(class_shares(torch.eye(4)), torch.full((4,), 0.25))


def test_the_server_opens_the_tail_by_the_shares_of_all_rounds_so_far(tmp_path: Path) -> None:
    engine = engine_of("loop", tmp_path, method="fedgrab")
    assert not engine.server.shared["open"].any(), "no prior is known in round 1"
    total = torch.zeros(3, dtype=torch.float64)
    for number in (1, 2, 3):
        engine.round(number)
        rows = engine.layout.views(engine.server.vector)["classifier.weight"]
        total += class_shares(rows)
        torch.testing.assert_close(engine.server.shared["shares"], total)
        assert torch.equal(engine.server.shared["open"], tail_of(total, 0.95))
    assert engine.server.shared["open"].any()


def test_clients_go_on_where_they_were_on_every_backend(tmp_path: Path) -> None:
    kept = []
    for way in WAYS:
        engine = engine_of(way, tmp_path, method="fedgrab", options={"classes": "all"})
        vector = trained(engine)
        kept.append((engine.kept.clone(), vector))
    for table, vector in kept[1:]:
        torch.testing.assert_close(table, kept[0][0], rtol=0, atol=1e-9)
        torch.testing.assert_close(vector, kept[0][1], rtol=0, atol=1e-9)
    assert kept[0][0].any(1).sum() == 8, "in three rounds of six of eight, all have trained"


def test_a_client_that_is_not_of_the_cohort_keeps_its_row(tmp_path: Path) -> None:
    engine = engine_of("batched 3", tmp_path, method="fedgrab", clients_per_round=3)
    begin(engine)
    before, cohort = engine.kept.clone(), engine.cohort(1)
    engine.round(1)
    changed = (engine.kept != before).any(1).nonzero().flatten().tolist()
    assert changed == sorted(cohort)


def test_a_saved_round_goes_on_with_the_clients_rows(tmp_path: Path) -> None:
    assert_a_saved_round_goes_on(tmp_path, method="fedgrab", options={"classes": "all"})


def test_rows_that_ranks_fill_in_for_their_own_clients_add_up_to_all() -> None:
    rows = torch.randn(4, 12, dtype=torch.float64)
    ranks = [RoundRecord(4, 2, 2, 12) for _ in range(2)]
    ranks[0].kept[[0, 3]], ranks[1].kept[[1, 2]] = rows[[0, 3]], rows[[1, 2]]
    assert torch.equal(ranks[0].of(ranks[0].numbers + ranks[1].numbers).kept, rows)


def test_exact_sums_carry_the_rows_bit_by_bit(tmp_path: Path) -> None:
    exact = engine_of("batched 2", tmp_path, method="fedgrab", aggregate={"exact": True}, options={"classes": "all"})
    plain = engine_of("batched 2", tmp_path, method="fedgrab", options={"classes": "all"})
    for engine in (exact, plain):
        engine.round(1)
    torch.testing.assert_close(exact.kept, plain.kept, rtol=0, atol=0)


def test_clients_that_are_cut_over_ranks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fedgrab needs .*set federate.shard=1"):
        engine_of("loop", tmp_path, method="fedgrab", shard=2)
