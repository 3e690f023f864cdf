"""The diffusion transformer (Peebles and Xie 2023), on the transformer of this project: rotary places in the place of
added ones, RMSNorm, SwiGLU (Yao et al. 2025, LightningDiT, section 4, measured these)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.nets.blocks import TimestepEmbedding, sinusoidal_embedding
from components.nets.rotary import GRID_BASE, grid_places
from components.nets.transformer import Transformer
from components.nets.unet import embedded

LEVEL_WIDTH = 256  # of a noise level's embedding, as published


def patches(x: Tensor, side: int) -> Tensor:
    """Rows (B, C, s, ...) of any rank -> (B, N, C * side^rank): patches in row-major order, each with its channels
    first."""
    rank = x.ndim - 2
    split = x.reshape(*x.shape[:2], *(part for length in x.shape[2:] for part in (length // side, side)))
    counts, within = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    return split.permute(0, *counts, 1, *within).reshape(len(x), -1, x.shape[1] * side**rank)


def unpatched(tokens: Tensor, side: int, shape: torch.Size) -> Tensor:
    """The inverse: patches (B, N, C * side^rank) -> rows of `shape` (B, C, s, ...)."""
    rank, channels = len(shape) - 2, shape[1]
    split = tokens.reshape(len(tokens), *(length // side for length in shape[2:]), channels, *[side] * rank)
    order = [axis for pair in zip(range(1, 1 + rank), range(2 + rank, 2 + 2 * rank), strict=True) for axis in pair]
    return split.permute(0, 1 + rank, *order).reshape(shape)


class DiT(nn.Module):
    """x (B, C, s, ...) of `rank` sides, noise level (B,) in [0, 1000], class (B,) or weights (B, num_classes), context
    (B, M, context_dim) -> x's shape.

    Level, class and what is `added` (B, embedding_dim) to their embedding modulate every block (adaLN-zero); a context
    is attended to, where there is a `context_dim`.
    `patch`: the side of a token, in cells; `num_classes` counts the rows of the class embedding, 0 leaves it out;
    `given_channels`: as of the U-Net."""

    def __init__(
        self,
        channels: int,
        rank: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int = 0,
        context_dim: int = 0,
        given_channels: int = 0,
    ):
        super().__init__()
        self.patch, self.embedding_dim = patch, width
        values = channels * patch**rank
        self.embed = nn.Linear((channels + given_channels) * patch**rank, width)
        self.level = TimestepEmbedding(LEVEL_WIDTH, width)
        self.class_embedding = nn.Embedding(num_classes, width) if num_classes else None
        self.trunk = Transformer(width, depth, heads, condition_dim=width, context_dim=context_dim, base=GRID_BASE)
        self.head = nn.Linear(width, values)
        nn.init.normal_(self.level.linear_1.weight, std=0.02)
        nn.init.normal_(self.level.linear_2.weight, std=0.02)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

        self.channels = channels

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        context: Tensor | None = None,
        label: Tensor | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        condition = self.level(sinusoidal_embedding(level, LEVEL_WIDTH))
        if self.class_embedding is not None:
            condition = condition + embedded(self.class_embedding, label)
        if added is not None:
            condition = condition + added
        places = grid_places([side // self.patch for side in x.shape[2:]], x.device)
        tokens = self.trunk(self.embed(patches(x, self.patch)), places, condition, context)
        return unpatched(self.head(tokens), self.patch, torch.Size((len(x), self.channels, *x.shape[2:])))
