"""Logit adjustment. Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021."""

from __future__ import annotations

from torch import Tensor

from fedscale.config.method_options import AdjustmentOptions
from fedscale.federated.methods.priors import ShiftedLogits


class LogitAdjustment(ShiftedLogits):
    """A client minimises cross-entropy of z + τ·log π (equation 10), π the class frequencies of its `prior`."""

    name = "logit_adjustment"
    citation = "Menon et al., ICLR 2021, arXiv:2007.07314"
    extra_cost = "upload: one number a class, once (none with prior=local)"
    Options = AdjustmentOptions
    options: AdjustmentOptions

    def shift(self, counts: Tensor) -> Tensor:
        return self.options.tau * (counts / counts.sum(-1, keepdim=True)).log()
