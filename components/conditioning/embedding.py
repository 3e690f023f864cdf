"""Conditioning on the embedding of an image, as by the decoder of DALL-E 2 (Ramesh et al. 2022, section 2.1): added to
that of the noise level, and as tokens to attend to beside the text's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EMBEDDING = "embedding"


def scaled(embedding: Tensor) -> Tensor:
    """(B, dim) of unit length -> of about unit spread an entry."""
    return math.sqrt(embedding.shape[-1]) * embedding


class ImageEmbedding(nn.Module):
    """Hands a denoiser an image's embedding (B, dim), of about unit spread an entry; zeros stand for none. `tokens` of
    `context_dim` are what is attended to, 0 for a backbone that attends to nothing."""

    names = (EMBEDDING,)

    def __init__(self, dim: int, embedding_dim: int, tokens: int, context_dim: int):
        super().__init__()
        self.vector = nn.Linear(dim, embedding_dim)
        self.tokens = nn.Linear(dim, tokens * context_dim) if tokens else None
        self.context_dim = context_dim

    def forward(self, x: Tensor, condition: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        embedding = condition.pop(EMBEDDING)
        condition["added"] = condition.get("added", 0) + self.vector(embedding)
        if self.tokens is not None:
            own = self.tokens(embedding).unflatten(1, (-1, self.context_dim))
            context = condition.get("context")
            condition["context"] = own if context is None else torch.cat([context.to(own.dtype), own], dim=1)
        return x, condition
