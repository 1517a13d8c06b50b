"""What clients tell the server without training: sums over all of them, or over a cohort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from fedscale.federated.clients import Surveyed
from fedscale.federated.cohort import by_steps, groups_of
from fedscale.federated.methods.base import zeros

if TYPE_CHECKING:
    from fedscale.federated.engine import Engine

TOGETHER = 8  # clients that are asked at a time


def survey_sums(engine: Engine, asked: Sequence[int], number: int = 0) -> dict[str, Tensor]:
    """The sums of what `asked` clients tell, float64 by name; their samples come in the order of round `number`.

    Bit by bit the same for any number of ranks in exact mode. Every rank must call it.
    """
    method, mesh, data, server = engine.method, engine.mesh, engine.data, engine.server
    groups = groups_of(by_steps(asked, [len(engine.clients[client]) for client in asked]), TOGETHER)
    start, like = engine.start(), server.vector[:1].double()
    # In exact mode every group's part is kept apart, so that the order of adding up is the groups' own.
    apart = engine.config.federate.aggregate.exact
    parts = zeros(method.surveys, like, len(groups) if apart else 1)
    for turn in range(mesh.client_index, len(groups), mesh.clients):
        plan = engine.plan(number, groups[turn])
        told, staged = zeros(method.surveys, like, plan.lanes), data.stage(plan)
        method.survey(Surveyed(plan, data, staged, start.model, method.problem.num_classes, server.shared, told))
        for name, part in parts.items():
            part[turn if apart else 0] += told[name].sum(0)
    return {name: mesh.sum_over_clients(part).sum(0) for name, part in parts.items()}
