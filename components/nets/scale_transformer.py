"""A transformer over grids of tokens from coarse to fine, whose tokens of one grid are told all at once after what the
coarser grids say (Tian et al. 2024, VAR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.nets.rotary import GRID_BASE, grid_places
from components.nets.transformer import Transformer


class ScaleTransformer(nn.Module):
    """Ids of a prefix (B, prefix) int64 below `conditions`, and of each token what the coarser grids say at its place,
    (B, N, channels) -> logits (B, N, vocabulary) float32. Squares of `sides`, coarse first, N their cells.

    A token sees the prefix and its own and coarser grids' tokens. Its place is its cell's middle, in cells of the
    finest grid."""

    def __init__(
        self,
        vocabulary: int,
        conditions: int,
        prefix: int,
        sides: Sequence[int],
        channels: int,
        width: int,
        depth: int,
        heads: int,
    ):
        super().__init__()
        self.prefix = prefix
        self.embed_prefix = nn.Embedding(conditions, width)
        self.embed = nn.Linear(channels, width)
        self.embed_scale = nn.Embedding(len(sides), width)
        self.trunk = Transformer(width, depth, heads, base=GRID_BASE)
        self.head = nn.Linear(width, vocabulary)
        for weights in (self.embed_prefix.weight, self.embed_scale.weight, self.head.weight):
            nn.init.normal_(weights, std=0.02)
        nn.init.zeros_(self.head.bias)
        cells = [(grid_places((side, side)) + 0.5) * (sides[-1] / side) - 0.5 for side in sides]
        before = torch.arange(-prefix, 0)[:, None].expand(prefix, 2).float()  # along a diagonal that leads to the grids
        scale = torch.cat([torch.full((len(cell),), number) for number, cell in enumerate(cells)])
        order = torch.cat([torch.full((prefix,), -1), scale])
        self.register_buffer("places", torch.cat([before, *cells]), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("mask", order[:, None] >= order, persistent=False)  # (prefix + N, prefix + N)

    def forward(self, prefix: Tensor, told: Tensor) -> Tensor:
        tokens = self.embed(told) + self.embed_scale(self.scale)
        x = torch.cat([self.embed_prefix(prefix).to(tokens.dtype), tokens], dim=1)
        return self.head(self.trunk(x, self.places, mask=self.mask)[:, self.prefix :]).float()
