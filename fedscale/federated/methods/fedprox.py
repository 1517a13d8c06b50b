"""FedProx. Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020."""

from __future__ import annotations

from fedscale.config.method_options import ProxOptions
from fedscale.federated.lanes.state import Blocks, LaneView
from fedscale.federated.methods.base import Method


class FedProx(Method):
    """A client's objective has the proximal term μ/2·‖w − w_global‖² (equation 2), with μ = `mu`."""

    name = "fedprox"
    citation = "Li et al., MLSys 2020, arXiv:1812.06127"
    extra_cost = "client: one copy of the model, two vector operations a step"
    Options = ProxOptions
    options: ProxOptions
    roles = ("start",)

    def adjust(self, lanes: LaneView, gradients: Blocks) -> None:
        mu = self.options.mu
        gradients.add_(lanes.parameters, alpha=mu).sub_(lanes["start"], alpha=mu)
