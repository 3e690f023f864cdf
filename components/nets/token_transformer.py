"""A transformer over the tokens of a grid, after a prefix that says what they shall show: causal, as a language model
(Radford et al. 2019; Sun et al. 2024, LlamaGen), or looking both ways (Chang et al. 2022, MaskGIT)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.nets.kept import Kept
from components.nets.rotary import GRID_BASE, grid_places
from components.nets.transformer import Transformer


class TokenTransformer(nn.Module):
    """Ids (B, prefix + N) int64 -> logits (B, prefix + N, vocabulary), float32.

    An id below `vocabulary` is a token, the next `conditions` ones are the prefix's, the last stands for a token that
    is not told, `untold`. Grids have N = prod(sides) tokens, in row-major order."""

    def __init__(
        self,
        vocabulary: int,
        conditions: int,
        prefix: int,
        sides: Sequence[int],
        width: int,
        depth: int,
        heads: int,
        causal: bool = False,
    ):
        super().__init__()
        self.vocabulary, self.prefix, self.num_tokens = vocabulary, prefix, math.prod(sides)
        self.untold = vocabulary + conditions
        self.embed = nn.Embedding(self.untold + 1, width)
        self.trunk = Transformer(width, depth, heads, causal=causal, base=GRID_BASE)
        self.head = nn.Linear(width, vocabulary)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        grid = grid_places(sides)
        before = torch.arange(-prefix, 0)[:, None].expand(prefix, len(sides))  # along a diagonal that leads to the grid
        self.register_buffer("places", torch.cat([before, grid]), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.trunk(self.embed(ids), self.places[: ids.shape[1]]))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden).float()


class CausalTokenTransformer(TokenTransformer):
    """Each place sees the ids up to its own and tells the next token. Its keys and values can be kept between calls
    (components/sampling/state.py)."""

    def __init__(self, *layout, **options):
        super().__init__(*layout, **options, causal=True)

    @property
    def length(self) -> int:
        """Ids that are ever told: the last token is not."""
        return self.prefix + self.num_tokens - 1

    @property
    def row_bytes(self) -> int:
        return self.trunk.row_bytes(self.length)

    def allocate(self, rows: int) -> Tensor:
        return self.trunk.allocate(rows, self.length)

    def next(self, ids: Tensor, position: Tensor, cache: Tensor, slot: Tensor) -> Tensor:
        """Logits (B, vocabulary) of the token after ids (B, n), which follow `position` (B,) kept ones."""
        kept = Kept(cache, slot, position)
        places = self.places[kept.positions(ids.shape[1])]
        return self.logits(self.trunk(self.embed(ids), places, kept=kept)[:, -1])
