"""Fed-Focal. Sarkar, Narang, Rai, Fed-Focal Loss for Imbalanced Data Classification in Federated Learning, 2020."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale.config.method_options import FocalOptions
from fedscale.federated.methods.base import Batch, Method, cross_entropy


class FedFocal(Method):
    """A client minimises −(1 − p_y)^γ·log p_y, the focal loss of Lin et al. (ICCV 2017, equation 4), γ = `gamma`.

    Without class weights, and without the paper's choice of clients by their models, as it is compared with elsewhere.
    """

    name = "fedfocal"
    citation = "Sarkar et al., FL-IJCAI 2020, arXiv:2011.06283"
    extra_cost = "none"
    Options = FocalOptions
    options: FocalOptions

    def loss(self, batch: Batch) -> Tensor:
        surprise = cross_entropy(batch.logits, batch.labels)  # −log p_y
        # Of p = 1 the power's slope is infinite where γ < 1; the smallest number keeps it finite.
        missing = (-torch.expm1(-surprise)).clamp(min=torch.finfo(surprise.dtype).tiny)
        return missing.pow(self.options.gamma) * surprise
