"""FedAvg. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017."""

from __future__ import annotations

from fedscale.federated.methods.base import Method


class FedAvg(Method):
    """Clients minimise cross-entropy by SGD; the server averages by sample count (Algorithm 1)."""

    name = "fedavg"
    citation = "McMahan et al., AISTATS 2017, arXiv:1602.05629"
    extra_cost = "none"
