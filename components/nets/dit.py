"""The diffusion transformer (Peebles and Xie 2023), on the transformer of this project: rotary places in the place of
added ones, RMSNorm, SwiGLU (Yao et al. 2025, LightningDiT, section 4, measured these)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.nets.blocks import TimestepEmbedding, embedded, sinusoidal_embedding
from components.nets.joint_transformer import JointTransformer
from components.nets.rotary import GRID_BASE, grid_places
from components.nets.routing import Route, those_through
from components.nets.transformer import Transformer

LEVEL_WIDTH = 256  # of a noise level's embedding, as published


def patches(x: Tensor, patch: int | Sequence[int]) -> Tensor:
    """Rows (B, C, s, ...) of any rank -> (B, N, C * values of a patch): patches in row-major order, each with its
    channels first. `patch`: their side, or one along each axis."""
    sides = patch_sides(patch, x.ndim - 2)
    rank = len(sides)
    parts = (part for length, side in zip(x.shape[2:], sides, strict=True) for part in (length // side, side))
    split = x.reshape(*x.shape[:2], *parts)
    counts, within = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    return split.permute(0, *counts, 1, *within).reshape(len(x), -1, x.shape[1] * math.prod(sides))


def unpatched(tokens: Tensor, patch: int | Sequence[int], shape: torch.Size) -> Tensor:
    """The inverse: patches (B, N, C * values of a patch) -> rows of `shape` (B, C, s, ...)."""
    sides, channels = patch_sides(patch, len(shape) - 2), shape[1]
    rank = len(sides)
    counts = (length // side for length, side in zip(shape[2:], sides, strict=True))
    split = tokens.reshape(len(tokens), *counts, channels, *sides)
    order = [axis for pair in zip(range(1, 1 + rank), range(2 + rank, 2 + 2 * rank), strict=True) for axis in pair]
    return split.permute(0, 1 + rank, *order).reshape(shape)


def patch_sides(patch: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """A patch's side along each axis."""
    return (patch,) * rank if isinstance(patch, int) else tuple(patch)


class DiT(nn.Module):
    """x (B, C, s, ...) of `rank` sides, noise level (B,) in [0, 1000], class (B,) or weights (B, num_classes), context
    (B, M, context_dim) -> x's shape.

    The level may be one for each place on the first axis, (B, s): frames of a film at noise levels of their own.
    Level, class and what is `added` (B, embedding_dim) to their embedding modulate every block (adaLN-zero); a context
    is attended to, where there is a `context_dim`. `patch`: the side of a token, in cells, or its sides; `num_classes`
    counts the rows of the class embedding, 0 leaves it out; `given_channels`: as of the U-Net, and so are `deep`
    (B, N, width), of the middle half of the blocks, and `tells_deep`.

    `route`: share of tokens and the span of blocks, first and last, which those bypass that `routed`, (B, N) numbers,
    says; `tap`: (answer, tokens (B, N, width) after so many blocks) is answered."""

    def __init__(
        self,
        channels: int,
        rank: int,
        patch: int | Sequence[int],
        width: int,
        depth: int,
        heads: int,
        num_classes: int = 0,
        context_dim: int = 0,
        given_channels: int = 0,
        route: tuple[float, int, int] | None = None,
    ):
        super().__init__()
        self.patch, self.embedding_dim, self.route = patch_sides(patch, rank), width, route
        self.deep_channels = width
        cells = math.prod(self.patch)
        values = channels * cells
        self.embed = nn.Linear((channels + given_channels) * cells, width)
        # at torch's own scale: at the published 0.02 a training of hundreds of steps hardly hears level and class
        # (docs/RESULTS.md, "Transformers")
        self.level = TimestepEmbedding(LEVEL_WIDTH, width)
        self.class_embedding = nn.Embedding(num_classes, width) if num_classes else None
        self.trunk = self._trunk(width, depth, heads, context_dim)
        self.head = nn.Linear(width, values)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

        self.channels = channels

    def _trunk(self, width: int, depth: int, heads: int, context_dim: int) -> nn.Module:
        return Transformer(width, depth, heads, condition_dim=width, context_dim=context_dim, base=GRID_BASE)

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of tokens along each axis of rows (C, s, ...)."""
        return tuple(length // side for length, side in zip(shape[1:], self.patch, strict=True))

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        context: Tensor | None = None,
        label: Tensor | None = None,
        added: Tensor | None = None,
        routed: Tensor | None = None,
        tap: int = 0,
        deep: Tensor | None = None,
        tells_deep: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        condition = self.level(sinusoidal_embedding(level.flatten(), LEVEL_WIDTH)).unflatten(0, level.shape)
        of_class = None if self.class_embedding is None else embedded(self.class_embedding, label)
        for told in (of_class, added):
            if told is not None:
                condition = condition + (told if level.ndim == 1 else told[:, None])
        told = (self.embed(patches(x, self.patch)), grid_places(self.counts(x.shape[1:]), x.device), condition, context)
        if tells_deep or deep is not None:
            tokens, beside = self.trunk.reusing(*told, deep)
        else:
            tokens, beside = self.trunk.routed(*told, self._route(routed), tap)
        answer = unpatched(self.head(tokens), self.patch, torch.Size((len(x), self.channels, *x.shape[2:])))
        return (answer, beside) if tap or tells_deep else answer

    def _route(self, numbers: Tensor | None) -> Route | None:
        if numbers is None:
            return None
        share, first, last = self.route
        return Route(first, last, those_through(numbers, share))


class MMDiT(DiT):
    """The same with a context whose rows share one attention with the image's, each kind with weights of its own
    (Esser et al. 2024, section 4). A row of zeros is no row; the mean of the others goes into what modulates."""

    def _trunk(self, width: int, depth: int, heads: int, context_dim: int) -> nn.Module:
        return JointTransformer(width, depth, heads, context_dim)
