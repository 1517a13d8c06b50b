"""Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 5): confidence against accuracy, in bins.

Every number of a bin is an integer, so that bins of several ranks add up to the very bins of one.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_BINS = 15  # of equal width, (m/15, (m+1)/15]: the paper's choice, and what others report
UNIT = 2.0**36  # confidences are added up in 1/2^36, exactly; an int64 holds the sum of 134 million images


def binned(confidences: Tensor, correct: Tensor) -> Tensor:
    """Images, correct ones and summed confidences (in 1/2^36) of each bin, int64 [3, 15].

    `confidences` [N] are the predicted classes' probabilities, NaN counting as 0; `correct` [N] is bool.
    """
    confidences = confidences.double().nan_to_num(0.0)
    places = ((confidences * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)
    amounts = torch.stack([torch.ones_like(places), correct.long(), (confidences * UNIT).round().long()])
    return torch.zeros(3, NUM_BINS, dtype=torch.int64).index_add_(1, places, amounts)


def expected_calibration_error(bins: Tensor) -> float:
    """Percent: the distance between confidence and accuracy of each bin, averaged with the bins' shares of images."""
    images, correct, confidence = bins.double()
    return float(100.0 * (confidence / UNIT - correct).abs().sum() / images.sum())
