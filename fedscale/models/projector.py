"""The projector that puts a vision model's features in front of a language model."""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Module):
    """Features [B, in_dim] to `tokens` embeddings [B, tokens, lm_dim]: two linear layers around a GELU, as LLaVA's."""

    def __init__(self, in_dim: int, tokens: int, lm_dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.linear_1 = nn.Linear(in_dim, lm_dim)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(lm_dim, tokens * lm_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(features))).unflatten(-1, (self.tokens, -1))
