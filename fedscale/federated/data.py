"""The clients' images inside a round: gathered by index, augmented and normalised as tensors, on the device.

`resident` keeps the whole store there; `mapped` stages the samples of one group at a time, the next one's while the
present one trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedscale.data.augment import PAD, crop_and_flip
from fedscale.federated.draws import draw
from fedscale.federated.plan import GroupPlan
from fedscale.federated.strong import strongly_augmented


@dataclass(frozen=True)
class StagedGroup:
    """A group's samples on the device: `rows` [S, K, B] point into `images` [N, H, W, C] (uint8) and `labels` [N]."""

    images: Tensor
    labels: Tensor
    rows: Tensor
    augment_keys: Tensor  # int64 [K]
    dropout_keys: Tensor  # int64 [K]
    side: Mapping[str, Tensor]  # further numbers of each sample, [N, …]


class RoundData:
    """A store of uint8 images [N, H, W, C] and labels [N], as the batches of groups.

    `resident`: on the device as a whole; on a CPU its memory map serves as it is, page by page.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        device: torch.device,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: str,
        resident: bool = True,
    ) -> None:
        self.device, self.resident, self._augment = device, resident, augment
        self.image_shape = (images.shape[3], images.shape[1], images.shape[2])  # [C, H, W]
        self._host = torch.from_numpy(images)
        self._labels = torch.from_numpy(np.ascontiguousarray(labels)).to(device)
        self._images = self._host.to(device) if resident else None
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        self._shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device)
        self._worker = None if resident else ThreadPoolExecutor(1, thread_name_prefix="staging")
        self._next: tuple[GroupPlan, Future[StagedGroup]] | None = None  # staged, or being staged
        self.side: dict[str, Tensor] = {}

    def add_side(self, name: str, numbers: Tensor) -> None:
        """Keep numbers [N, …] of every sample of the store on the device, which losses get beside the labels."""
        assert len(numbers) == len(self._labels), (len(numbers), len(self._labels))
        self.side[name] = numbers.to(self.device)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images * self._scale).sub_(self._shift)

    def close(self) -> None:
        """End the staging thread."""
        if self._worker:
            self._worker.shutdown(cancel_futures=True)

    def prefetch(self, plan: GroupPlan | None) -> None:
        """Begin to stage the group that trains next, once the present one is; a resident store needs nothing."""
        if self._worker and plan is not None:
            self._next = plan, self._worker.submit(self._gather, plan)

    def stage(self, plan: GroupPlan) -> StagedGroup:
        """The group's samples, staged now or while the group before it trained."""
        if self._images is not None:
            return self._staged(self._images, self._labels, plan.rows, plan, self.side)
        if self._next is not None and self._next[0] is plan:
            staged, self._next = self._next[1].result(), None
            return staged
        return self._gather(plan)

    def _gather(self, plan: GroupPlan) -> StagedGroup:
        needed, rows = np.unique(plan.rows, return_inverse=True)
        wanted = torch.from_numpy(needed)
        images = torch.empty(
            (len(needed), *self._host.shape[1:]), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        torch.index_select(self._host, 0, wanted, out=images)
        there = wanted.to(self.device)
        labels, side = self._labels[there], {name: numbers[there] for name, numbers in self.side.items()}
        images = images.to(self.device, non_blocking=True)
        return self._staged(images, labels, rows.reshape(plan.rows.shape), plan, side)

    def _staged(
        self, images: Tensor, labels: Tensor, rows: np.ndarray, plan: GroupPlan, side: Mapping[str, Tensor]
    ) -> StagedGroup:
        def placed(array: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

        return StagedGroup(images, labels, placed(rows), placed(plan.augment_keys), placed(plan.dropout_keys), side)

    def plain(self, group: StagedGroup, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Images [n, C, H, W], normalised and not augmented, and labels [n] of staged `rows` [n]."""
        return self.normalised(group.images[rows]).to(dtype), group.labels[rows]

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images [n, H, W, C] as float [n, C, H, W]."""
        return self._normalised(images).permute(0, 3, 1, 2).contiguous()

    def batch(
        self, group: StagedGroup, step: int, start: int, stop: int, size: int, channels_last: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Step `step` of lanes `start` to `stop`: images [B, L, C, H, W] and labels [L, B], `size` = B samples a lane.

        Images lie so that [B, L·C, H, W] is a view, channels-last or contiguous.
        """
        rows = group.rows[step, start:stop, :size]
        return self.gathered(group, rows, group.augment_keys[start:stop], step, channels_last, dtype)

    def gathered(
        self,
        group: StagedGroup,
        rows: Tensor,
        augment_keys: Tensor,
        step: int | Tensor,
        channels_last: bool,
        dtype: torch.dtype,
        strong: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Like `batch`, for given `rows` [L, B] and keys [L]: tensor code alone, which a CUDA graph can hold.

        With `strong`, images [2·B, L, C, H, W]: behind the batch, the same samples augmented strongly.
        """
        lanes, size = rows.shape
        flat = rows.t().reshape(-1)  # sample after sample, the lanes of each side by side
        given = images = group.images.index_select(0, flat)  # whole images; images[flat] goes byte by byte on a CPU
        # A sample's number in its client's round is its own step times the full batch, plus its place there.
        numbers = torch.arange(size, device=rows.device)[:, None] + step * group.rows.shape[2]
        if self._augment != "none":
            images = self._augmented(images, draw(augment_keys[None], numbers).reshape(-1))
        if strong:
            words = [draw(augment_keys[None], numbers + (word << 40)).reshape(-1) for word in (1, 2, 3)]
            cropped = given if self._augment == "none" else self._augmented(given, words[0])
            images = torch.cat([images, strongly_augmented(cropped, words[1], words[2])])
        images = self._laid_out(images.view(-1, lanes, *images.shape[1:]), channels_last)
        channels = [1, 1, -1, 1, 1]
        pixels = (images * self._scale.view(channels)).sub_(self._shift.view(channels))
        return pixels.to(dtype), group.labels[rows]

    def _laid_out(self, images: Tensor, channels_last: bool) -> Tensor:
        """Images [B, L, H, W, C] as [B, L, C, H, W], with [B, L·C, H, W] channels-last or contiguous.

        Where that changes nothing in memory (one lane, or one channel) it is a view.
        """
        if channels_last:
            return images.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 4, 1, 2)
        return images.permute(0, 1, 4, 2, 3).contiguous()

    def _augmented(self, images: Tensor, bits: Tensor) -> Tensor:
        """16 bits of each draw choose the row, 16 the column of a crop, one the flip; bits int64 [B·L]."""
        offsets = None
        if self._augment == "crop_flip":
            positions = 2 * PAD + 1
            offsets = torch.stack([((bits >> shift) & 0xFFFF) * positions >> 16 for shift in (0, 16)])
        return crop_and_flip(images, offsets, ((bits >> 32) & 1).bool())
