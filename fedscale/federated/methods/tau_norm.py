"""τ-normalisation. Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedscale.config.method_options import TauNormOptions
from fedscale.errors import UserError
from fedscale.federated.methods.base import Method
from fedscale.models.resnet import Classifier


class TauNorm(Method):
    """FedAvg whose evaluated model has the classifier w_c / ‖w_c‖^τ without bias (section 4)."""

    name = "tau_norm"
    citation = "Kang et al., ICLR 2020, arXiv:1910.09217"
    extra_cost = "server: the classifier's rows divided by their norms"
    Options = TauNormOptions
    options: TauNormOptions

    def check(self, model: nn.Module, teacher: Mapping[str, Tensor]) -> None:
        if not isinstance(model, Classifier):
            raise UserError(
                f"federate.method={self.name}: re-scales the classifier; expected a model with `features` and "
                f"`classifier` (fedscale.models.Classifier), found {type(model).__name__}"
            )

    def judged(self, state: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = state["classifier.weight"]
        norms = weight.norm(dim=1, keepdim=True)
        norms = torch.where(norms > 0, norms, 1.0)  # a row of zeros stays one
        replaced = {"classifier.weight": weight / norms.pow(self.options.tau)}
        if "classifier.bias" in state:
            replaced["classifier.bias"] = torch.zeros_like(state["classifier.bias"])
        return replaced
