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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask=mask)
        return x + self.ff(self.norm2(x))


class TextEncoder(nn.Module):
    """Bytes (B, L) int64 -> (B, L, context_dim): a transformer (Vaswani et al. 2017) with learnt places.

    Zeros stand behind a text's end. With `hides_padding` no byte sees them, and their rows are zeros."""

    def __init__(self, length: int, width: int, layers: int, heads: int, context_dim: int, hides_padding: bool = False):
        super().__init__()
        self.hides_padding = hides_padding
        self.bytes = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(length, width) / 10)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, context_dim)

    def features(self, tokens: Tensor) -> Tensor:
        """(B, L, width), before the projection."""
        x, mask = self.bytes(tokens) + self.places, None
        if self.hides_padding:  # what is hidden sees itself, so that no place sees nothing
            own = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
            mask = ((tokens != 0)[:, None] | own)[:, None]  # (B, 1, L, L)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        context = self.project(self.features(tokens))
        return context * (tokens != 0)[:, :, None] if self.hides_padding else context
