"""What the torch peers share: the workload's tensors, its model with the initial weights, and the users' indices."""

from __future__ import annotations

import torch
from common import Job
from models import build, load_weights
from torch import Tensor, nn
from workloads import normalised


def tensors(job: Job) -> tuple[Tensor, Tensor]:
    """All images as floats [N, C, H, W], normalised once, and labels [N]. Limits torch's threads to the job's."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.workload.seed)  # dropout's; each peer draws its masks in an order of its own
    images = torch.from_numpy(normalised(job.data.images)).permute(0, 3, 1, 2)
    # Copied, not `.contiguous()`: for one channel that would keep the strides of [N, H, W, 1], with which torch 2.15's
    # convolutions err by 1e-3 after 250 steps (against float64; with ordinary strides by 1e-7).
    return torch.empty(images.shape).copy_(images), torch.from_numpy(job.data.labels)


def users(job: Job) -> list[Tensor]:
    """Each user's indices."""
    return [torch.from_numpy(job.data.user(number)) for number in range(job.workload.users)]


def initial_model(job: Job) -> nn.Module:
    return load_weights(build(job.workload), job.weights)
