"""One file a method: what a client minimises and keeps, what it uploads, what the server does with the means.

`base` says what a method may override. To add one: a file beside these, and its class in METHODS.
"""

from __future__ import annotations

from fedscale.federated.methods.base import Method, Server
from fedscale.federated.methods.fedavg import FedAvg
from fedscale.federated.methods.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedscale.federated.methods.fedprox import FedProx
from fedscale.federated.methods.scaffold import Scaffold

__all__ = ["METHODS", "FedAvg", "Method", "Server"]

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi, FedProx, Scaffold)
}
