"""The alignment loss of stage 3, as a pure function."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class AlignmentLoss(NamedTuple):
    """L_align and its two parts, each a scalar: `total` is `ce` + β·T²·`kl`."""

    total: Tensor
    ce: Tensor
    kl: Tensor


def alignment_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, beta: float, temperature: float
) -> AlignmentLoss:
    """L_align = L_ce(y, p) + β·T²·KL(q ‖ p), means over the batch (METHOD.md, stage 3; T² as CLIP2FL and Hinton).

    `logits` and `teacher_logits` [B, C], `labels` [B]. The cross-entropy is at temperature 1; p and q of the KL term
    are softmax(logits / T) and softmax(teacher_logits / T). No gradient reaches the teacher.
    """
    ce = F.cross_entropy(logits, labels)
    log_p = F.log_softmax(logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    # torch's kl_div(input, target) is KL(target ‖ exp(input)).
    kl = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return AlignmentLoss(ce + beta * temperature**2 * kl, ce, kl)
