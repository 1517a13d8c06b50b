"""MOON. Li, He, Song, Model-Contrastive Federated Learning, CVPR 2021."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fedscale.config.method_options import MoonOptions
from fedscale.federated.clients import Clients
from fedscale.federated.methods.base import Batch, Method, cross_entropy


class Moon(Method):
    """A client minimises cross-entropy + μ·ℓ, ℓ = −log(e^{s_glob/τ} / (e^{s_glob/τ} + e^{s_prev/τ})) (equation 3).

    s are the cosines of a sample's features with those by the global model and by the client's own last one, both in
    evaluation mode. Features are the classifier's inputs: the paper's projection head would be another model for every
    method. A client's first time its last model is the global one, whose ℓ has no gradient.
    """

    name = "moon"
    citation = "Li et al., CVPR 2021, arXiv:2103.16257"
    extra_cost = "client: two forward passes a step, a model kept"
    Options = MoonOptions
    options: MoonOptions
    roles = ("start", "previous")
    models = ("start", "previous")
    client_state = ("previous",)
    uses_features = True
    compares = ("start", "previous")

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None
        to_global, to_previous = (F.cosine_similarity(batch.features, batch.others[role], -1) for role in self.compares)
        # −log of the softmax's first of two
        contrast = F.softplus((to_previous - to_global) / self.options.temperature)
        return cross_entropy(batch.logits, batch.labels) + self.options.mu * contrast

    def final(self, clients: Clients) -> None:
        previous = clients.lanes.model("previous")
        for name, tensor in clients.lanes.tensors.items():
            previous[name].copy_(tensor)
