"""Balanced Softmax. Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, NeurIPS 2020."""

from __future__ import annotations

from torch import Tensor

from fedscale.config.method_options import BalancedOptions
from fedscale.federated.methods.priors import ShiftedLogits


class BalancedSoftmax(ShiftedLogits):
    """A client minimises −log(n_y·exp z_y / Σ_c n_c·exp z_c) (equation 4), n the samples of each class of its `prior`.

    With its own counts, the default, every client's best model is the same, balanced one. The paper's meta-sampler,
    which needs a balanced set, is no part of it.
    """

    name = "balanced_softmax"
    citation = "Ren et al., NeurIPS 2020, arXiv:2007.10740"
    extra_cost = "upload: one number a class, once (none with prior=local)"
    Options = BalancedOptions
    options: BalancedOptions

    def shift(self, counts: Tensor) -> Tensor:
        return counts.log()
