"""SCAFFOLD. Karimireddy et al., Stochastic Controlled Averaging for Federated Learning, ICML 2020."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedscale.config.method_options import ScaffoldOptions
from fedscale.federated.clients import Clients
from fedscale.federated.lanes.state import Blocks, LaneView
from fedscale.federated.methods.base import Method, Server, weight_of_steps


class Scaffold(Method):
    """Client gradients are corrected by c − c_i; the controls are renewed by option II (Algorithm 1, equation 4).

    (x − y_i) / (K·lr) is there the mean of a client's gradients. With momentum a gradient weighs more in x − y_i, so
    that ‖a_i‖₁ takes the place of K; else the controls would grow from round to round. Means are plain, by the paper.
    """

    name = "scaffold"
    citation = "Karimireddy et al., ICML 2020, arXiv:1910.06378"
    extra_cost = "client: one vector operation a step, one vector kept; upload: twice the model; server: one vector"
    Options = ScaffoldOptions
    options: ScaffoldOptions
    roles = ("start", "control", "drift", "change")
    client_state = ("control",)
    uploads = ("change",)
    server_state = ("control",)
    broadcast = ("control",)

    def weight(self, num_samples: int) -> float:
        return 1.0

    def init(self, clients: Clients) -> None:
        lanes = clients.lanes
        for drift, c in zip(lanes["drift"], clients.broadcast["control"], strict=True):
            drift.copy_(c.expand_as(drift))
        lanes["drift"].sub_(lanes["control"])

    def adjust(self, lanes: LaneView, gradients: Blocks) -> None:
        gradients.add_(lanes["drift"])

    def final(self, clients: Clients) -> None:
        lanes, steps = clients.lanes, weight_of_steps(clients.steps, self.config.momentum)
        # c_i⁺ = c_i − c + (x − y_i) / (K·lr), where c_i − c = −drift
        renewed = lanes["start"].sub_(lanes.parameters).div_lanes_(steps * self.config.lr).sub_(lanes["drift"])
        lanes["change"].copy_(renewed).sub_(lanes["control"])
        lanes["control"].copy_(renewed)

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        server.state["control"].add_(uploads["change"], alpha=server.participation)
        return server.vector + self.options.server_lr * (mean - server.vector)
