"""CLIP2FL. Shi et al., CLIP-guided Federated Learning on Heterogeneous and Long-Tailed Data, AAAI 2024."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.method_options import Clip2flOptions
from fedscale.errors import UserError
from fedscale.federated.methods.base import Batch, ServerWork, cross_entropy
from fedscale.federated.methods.creff import CReFF


class CLIP2FL(CReFF):
    """CReFF, with CLIP as a teacher of the clients and its texts as prototypes of the server's features.

    1. A client minimises cross-entropy + α·T²·KL(softmax(t/T) ‖ softmax(z/T)), where t = s·cosine of the image, as it
       is without augmentation, with each class's prompt (encoded once a run), and s is CLIP's own scale, 100 in the
       published weights.
    2. The server's features also descend `prototype_weight` times the mean over all of them of
       −[a_c − log((n − 1)·exp(a_c) + n·Σ_{k≠c} exp(a_k))], a_k = ⟨s, t_k⟩ / `prototype_temperature`, where t_k is the
       embedding of class k's prompt, n the features a class. At the official 0.001 it hardly moves them.
    3. Features are as wide as CLIP's embeddings, by `model.projection`.
    """

    name = "clip2fl"
    citation = "Shi et al., AAAI 2024, arXiv:2312.08648"
    extra_cost = (
        "client: CLIP encodes its images once, one forward pass over them a round; upload: the classifier's gradient "
        "of each class; server: features and a head trained every round"
    )
    Options = Clip2flOptions
    options: Clip2flOptions
    sides = ("clip",)

    def check(self, model: nn.Module, teacher: Mapping[str, Tensor]) -> None:
        super().check(model, teacher)
        width, embedding = self.problem.feature_dim, teacher["clip"].shape[1]
        if width != embedding:
            raise UserError(
                f"federate.method={self.config.method}: the model's features are {width} wide, CLIP's embeddings "
                f"{embedding}; set model.projection={embedding}"
            )

    def loss(self, batch: Batch) -> Tensor:
        temperature, logits = self.options.temperature, batch.logits
        own = F.log_softmax(logits / temperature, dim=-1)
        taught = F.log_softmax(batch.side["clip"].to(logits.dtype) / temperature, dim=-1)
        divergence = (taught.exp() * (taught - own)).sum(-1)
        return cross_entropy(logits, batch.labels) + self.options.alpha * temperature**2 * divergence

    def pull(self, work: ServerWork) -> Callable[[Tensor], Tensor]:
        features = work.shared["features"]
        texts = work.teacher["clip"].to(features)
        classes, each, _ = features.shape
        # How often a key counts: a feature's own class has n − 1 others.
        log_counts = torch.log(each - torch.eye(classes, dtype=features.dtype, device=features.device))[:, None]
        scale = self.options.prototype_weight / (classes * each * self.options.prototype_temperature)

        def gradient(features: Tensor) -> Tensor:
            likeness = features @ texts.t() / self.options.prototype_temperature
            shares = (likeness + log_counts).softmax(2)
            shares.diagonal(dim1=0, dim2=2).sub_(1)
            return scale * shares @ texts

        return gradient
