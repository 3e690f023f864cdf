"""Rotary positions (Su et al. 2021) of tokens on grids of any rank: the axes share the pairs of a head's channels
(Heo et al. 2024, section 3.2, which calls it axial)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SEQUENCE_BASE = 10_000.0  # Su et al. 2021
GRID_BASE = 100.0  # Heo et al. 2024, section 3.2: the sides of a grid are short


def grid_places(sides: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The coordinates of a grid's cells in row-major order: (N, rank) int64."""
    axes = [torch.arange(side, device=device) for side in sides]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(axes))


def rotary_angles(places: Tensor, head_dim: int, base: float = SEQUENCE_BASE) -> Tensor:
    """Places (..., N, rank) -> angles (..., N, head_dim / 2) float32.

    An axis has its share of the pairs, the first ones one more where they cannot be shared evenly. Equal places turn
    alike, so a token's place goes with it wherever it stands in a sequence."""
    pairs, rank = head_dim // 2, places.shape[-1]
    assert head_dim % 2 == 0 and pairs >= rank, f"{head_dim} channels a head hold no {rank} axes"
    parts = []
    for axis in range(rank):
        count = pairs // rank + (axis < pairs % rank)
        frequencies = base ** (-torch.arange(count, device=places.device) / count)
        parts.append(places[..., axis, None].float() * frequencies)
    return torch.cat(parts, dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns the pairs (i, i + d / 2) of x (B, heads, N, d) by angles (N, d / 2) or (B, N, d / 2), in float32."""
    cosine, sine = angles.cos().unsqueeze(-3), angles.sin().unsqueeze(-3)
    one, other = x.float().chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, one * sine + other * cosine], dim=-1).to(x.dtype)


class Turns(NamedTuple):
    """What `turned` takes of angles, once for all that is turned by them: both (B or 1, N, 1, 1, d)."""

    cosine: Tensor
    sine: Tensor  # below 0 in the first half


def turns_of(angles: Tensor) -> Turns:
    """Of angles (N, d / 2) or (B, N, d / 2)."""
    angles = angles.view(-1, *angles.shape[-2:])[:, :, None, None]
    cosine, sine = angles.cos(), angles.sin()
    return Turns(torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1))


def turned(x: Tensor, turns: Turns) -> Tensor:
    """As `rotate`, of x (B, N, M, heads, d)."""
    turning = x.float()
    return torch.addcmul(turning * turns.cosine, turning.roll(x.shape[-1] // 2, -1), turns.sine).to(x.dtype)
