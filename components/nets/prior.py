"""The prior of DALL-E 2 (Ramesh et al. 2022, section 2.2): a causal transformer from a text to the embedding of an
image that it describes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.nets.blocks import TimestepEmbedding, sinusoidal_embedding
from components.nets.rotary import SEQUENCE_BASE
from components.nets.transformer import Transformer

LEVEL_WIDTH = 64


class Prior(nn.Module):
    """A noised image embedding x (B, dim) at a noise level (B,) in [0, 1000], under a text's tokens (B, L, token_dim)
    and embedding (B, dim) -> the clean image embedding (B, dim), read at a learnt query at the sequence's end."""

    def __init__(self, dim: int, token_dim: int, width: int, depth: int, heads: int):
        super().__init__()
        self.tokens = nn.Linear(token_dim, width)
        self.text, self.image = nn.Linear(dim, width), nn.Linear(dim, width)
        self.level = TimestepEmbedding(LEVEL_WIDTH, width)
        self.query = nn.Parameter(torch.randn(width) / 10)
        self.trunk = Transformer(width, depth, heads, causal=True, base=SEQUENCE_BASE)
        self.head = nn.Linear(width, dim)

    def forward(self, x: Tensor, level: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        told = [self.text(pooled), self.level(sinusoidal_embedding(level, LEVEL_WIDTH)), self.image(x)]
        ends = torch.stack([*told, self.query.to(told[0].dtype).expand_as(told[0])], dim=1)
        sequence = torch.cat([self.tokens(tokens), ends], dim=1)
        places = torch.arange(sequence.shape[1], device=x.device)[:, None]
        return self.head(self.trunk(sequence, places)[:, -1])
