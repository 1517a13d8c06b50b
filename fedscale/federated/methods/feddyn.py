"""FedDyn. Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedscale.config.method_options import DynOptions
from fedscale.federated.clients import Clients
from fedscale.federated.lanes.state import Blocks, LaneView
from fedscale.federated.methods.base import Method, Server


class FedDyn(Method):
    """A client minimises L_k(θ) − ⟨g_k, θ⟩ + α/2·‖θ − θ^t‖², then g_k ← g_k − α·(θ_k − θ^t) (Algorithm 1).

    The server keeps h ← h − α/m·Σ(θ_k − θ^t) over the cohort, m all clients, and sends the cohort's plain mean minus
    h/α, which is the model that is judged. Statistics of batch norm are averaged and nothing else.
    """

    name = "feddyn"
    citation = "Acar et al., ICLR 2021, arXiv:2111.04263"
    extra_cost = "client: two vector operations a step, a vector kept; server: one vector kept"
    Options = DynOptions
    options: DynOptions
    roles = ("gradient",)
    client_state = ("gradient",)
    server_state = ("h",)

    def weight(self, num_samples: int) -> float:
        return 1.0

    def init(self, clients: Clients) -> None:
        # While a client trains its buffer is g_k + α·θ^t, all of the two terms' gradient that does not change.
        clients.lanes["gradient"].add_(clients.lanes.parameters, alpha=self.options.alpha)

    def adjust(self, lanes: LaneView, gradients: Blocks) -> None:
        gradients.add_(lanes.parameters, alpha=self.options.alpha).sub_(lanes["gradient"])

    def final(self, clients: Clients) -> None:
        clients.lanes["gradient"].sub_(clients.lanes.parameters, alpha=self.options.alpha)

    def server_step(self, server: Server, mean: Tensor, uploads: Mapping[str, Tensor]) -> Tensor:
        alpha = self.options.alpha
        h = server.state["h"].sub_(mean - server.vector, alpha=alpha * server.participation)
        return mean - h / alpha
