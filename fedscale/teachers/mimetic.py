"""Mimetic initialisation (Trockman and Kolter, 2023, arXiv 2305.09828): vision transformers start like trained ones.

Without it a small ViT spends most of a short training on learning to look at all; from scratch on small data it gains
several points. Queries and keys start alike, so that tokens attend to like tokens; positions are sinusoids.
"""

from __future__ import annotations

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor


@torch.no_grad()
def mimetic_init(visual: VisionTransformer) -> None:
    """Initialise the attention and the positions in place."""
    for block in visual.transformer.resblocks:
        attention = block.attn
        width, heads = attention.embed_dim, attention.num_heads
        for head in range(heads):
            rows = slice(head * width // heads, (head + 1) * width // heads)
            left, right = _factors(width, scale=0.7, identity=0.7)
            attention.in_proj_weight[:width][rows] = left[: width // heads]
            attention.in_proj_weight[width : 2 * width][rows] = right[: width // heads]
        left, right = _factors(width, scale=0.4, identity=-0.4)
        attention.in_proj_weight[2 * width :] = right
        attention.out_proj.weight.copy_(left.T)
    side = round((len(visual.positional_embedding) - 1) ** 0.5)  # one place is the class token's
    visual.positional_embedding[1:] = 0.3 * _sinusoids(side, visual.positional_embedding.shape[1])


def _factors(width: int, scale: float, identity: float) -> tuple[Tensor, Tensor]:
    """Rows of A and B with Aᵀ·B = scale·Z + identity·I for a random Z, the largest singular values first."""
    product = scale * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)
    u, s, v = torch.linalg.svd(product)
    return s.sqrt()[:, None] * u.T, s.sqrt()[:, None] * v


def _sinusoids(side: int, width: int) -> Tensor:
    """Sines and cosines of both coordinates of a side × side grid, [side², width]."""
    quarter = -(-width // 4)
    frequencies = 1 / 100 ** (torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)[:, :width]
