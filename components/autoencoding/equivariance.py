"""EQ-VAE (Kouzelis et al. 2025): latents that are turned or shrunk decode to images that are turned or shrunk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from components.config import Strict
from components.data.randomness import Draws, hash64


class EquivarianceConfig(Strict):
    """`share` of the steps change the latents, the others are plain (section 3.3); `smallest`: the least scale."""

    share: float = Field(0.5, gt=0, le=1)
    smallest: float = Field(0.25, gt=0, le=1)


@dataclass(frozen=True)
class Change:
    """Quarter `turns`, then a resize so that latents have sides of `side` and images `factor` times as long ones."""

    turns: int
    side: int
    factor: int

    def latents(self, latents: Tensor) -> Tensor:
        return self._changed(latents, self.side)

    def images(self, images: Tensor) -> Tensor:
        return self._changed(images, self.side * self.factor)

    def _changed(self, x: Tensor, side: int) -> Tensor:
        turned = torch.rot90(x, self.turns, (2, 3))
        if x.shape[2] == side:
            return turned
        return F.interpolate(turned, (side, side), mode="bilinear", antialias=True)


def draw(config: EquivarianceConfig, step: int, side: int, factor: int, least: int) -> Change | None:
    """The change of a step's whole batch, the same on all workers; None: plain. `side` of the latents, `least` of the
    images that others can take."""
    draws = Draws(torch.tensor([hash64("equivariance", step)]))
    if float(draws.uniform("plain")) >= config.share:
        return None
    low = max(math.ceil(side * config.smallest), math.ceil(least / factor))
    return Change(int(draws.integers("turns", 4)), low + int(draws.integers("side", max(1, side - low + 1))), factor)
