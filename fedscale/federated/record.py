"""The numbers of a round that all ranks exchange beside the sums, in the same collective."""

from __future__ import annotations

import torch
from torch import Tensor

TRAINED, DIVERGED = 1.0, 2.0  # a client's status
INTERRUPTED, OUT_OF_MEMORY = 1.0, 2.0  # why a rank ended the round before its clients had trained


class RoundRecord:
    """Numbers that every rank fills in for its own clients and groups, as views of one float64 vector."""

    def __init__(self, cohort: int, groups: int, ranks: int, kept: int, numbers: Tensor | None = None) -> None:
        self._sizes = (cohort, groups, ranks, kept)
        self.size = (2 + kept) * cohort + groups + 2 * ranks
        self.numbers = torch.zeros(self.size, dtype=torch.float64) if numbers is None else numbers
        *parts, table = self.numbers.split([cohort, cohort, groups, ranks, ranks, kept * cohort])
        self.losses, self.status, self.seconds, self.used, self.ended = parts
        self.kept = table.view(cohort, kept)  # what each client keeps

    def of(self, numbers: Tensor) -> RoundRecord:
        """The same views of another vector."""
        return RoundRecord(*self._sizes, numbers)
