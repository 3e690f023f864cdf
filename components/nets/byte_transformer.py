"""A transformer over the bytes of texts, trained from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.nets.blocks import Attention, FeedForward

VOCABULARY = 256  # bytes


class TextBlock(nn.Module):
    """Self-attention and feed-forward, each normalised first and residual."""

    recomputable = True

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ff(self.norm2(x))


class TextEncoder(nn.Module):
    """Bytes (B, L) int64 -> (B, L, context_dim): a transformer (Vaswani et al. 2017) with learnt places."""

    def __init__(self, length: int, width: int, layers: int, heads: int, context_dim: int):
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(length, width) / 10)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, context_dim)

    def features(self, tokens: Tensor) -> Tensor:
        """(B, L, width), before the projection."""
        x = self.bytes(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.project(self.features(tokens))
