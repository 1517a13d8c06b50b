"""FedAvg. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class FedAvg:
    """Clients minimise cross-entropy by SGD; the server averages by sample count (Algorithm 1)."""

    name = "fedavg"
    citation = "McMahan et al., AISTATS 2017, arXiv:1602.05629"
    extra_cost = "none"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    def weight(self, num_samples: int) -> float:
        return float(num_samples)

    def server_step(self, vector: Tensor, mean: Tensor) -> Tensor:
        return mean
