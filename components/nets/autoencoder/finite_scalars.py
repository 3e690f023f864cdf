"""Finite scalar quantisation (Mentzer et al. 2024): every latent channel is rounded to one of a few levels, and a code
is a combination of levels. Nothing is learnt, so no code can die for want of latents."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from components.nets.autoencoder.codebook import OnePerPlace

_BEYOND = 1 + 1e-3  # the outermost level, so that it is reached, and by less than rounding leaves it


class FiniteScalars(OnePerPlace):
    """Latents (B, C, h, w) -> the nearest of prod(levels) codes at each place, in [-1, 1], C = len(levels). Levels are
    three or more."""

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        self.levels, self.size = tuple(levels), math.prod(levels)
        wide = torch.tensor(levels, dtype=torch.float32)
        offset = torch.where(wide % 2 == 0, 0.5, 0.0)  # even counts have no level at 0
        half = (wide - 1) * _BEYOND / 2
        steps = torch.tensor([math.prod(levels[:place]) for place in range(len(levels))])
        for name, values in {
            "reach": half,
            "offset": offset,
            "shift": torch.atanh(offset / half),
            "radius": torch.tensor(levels) // 2,
            "steps": steps,
        }.items():
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """The codes, in float32, with the gradient of the bounded latents (straight through)."""
        return self._rounded(latents)

    def _rounded(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            bounded = (latents.float() + self.shift).tanh() * self.reach - self.offset
            return (bounded + (bounded.round() - bounded).detach()) / self.radius

    def nearest(self, latents: Tensor) -> Tensor:
        """The code of the latent at each place, without a graph."""
        with torch.no_grad():
            return self._rounded(latents)

    def tokens(self, latents: Tensor) -> Tensor:
        """Numbers of the codes, (B, h, w) int64."""
        levels = (self.nearest(latents) * self.radius + self.radius).round().long()
        return (levels * self.steps).sum(1)

    def codes_of(self, tokens: Tensor) -> Tensor:
        """Codes (B, C, h, w) by their numbers (B, h, w)."""
        levels = tokens[:, None] // self.steps % (2 * self.radius + (self.offset == 0))
        return (levels - self.radius) / self.radius

    def commitment(self, latents: Tensor, tokens: Tensor) -> None:
        """No latent is pulled to its code."""

    def fingerprint(self) -> str:
        """Of what the numbers of codes mean."""
        return hashlib.sha256(repr(("fsq", self.levels)).encode()).hexdigest()[:32]
