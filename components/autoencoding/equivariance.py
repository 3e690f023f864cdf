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
    """Quarter `turns`, then a resize so that latents have these `sides`, height and width before they are turned, and
    images `factor` times as long ones."""

    turns: int
    sides: tuple[int, int]
    factor: int

    def latents(self, latents: Tensor) -> Tensor:
        return self._changed(latents, self.sides)

    def images(self, images: Tensor) -> Tensor:
        height, width = self.sides
        return self._changed(images, (height * self.factor, width * self.factor))

    def _changed(self, x: Tensor, sides: tuple[int, int]) -> Tensor:
        turned = torch.rot90(x, self.turns, (2, 3))
        if x.shape[2:] == sides:
            return turned
        return F.interpolate(turned, sides[::-1] if self.turns % 2 else sides, mode="bilinear", antialias=True)


def draw(config: EquivarianceConfig, step: int, sides: tuple[int, int], factor: int, least: int) -> Change | None:
    """The change of a step's whole batch, the same on all workers; None: plain. `sides`: height and width of the
    latents, whose ratio stays as near as whole numbers are; `least`: a side of the images that others can take."""
    draws = Draws(torch.tensor([hash64("equivariance", step)]))
    if float(draws.uniform("plain")) >= config.share:
        return None
    shorter = min(sides)
    low = max(math.ceil(shorter * config.smallest), math.ceil(least / factor))
    drawn = low + int(draws.integers("side", max(1, shorter - low + 1)))
    height, width = (round(side * drawn / shorter) for side in sides)
    return Change(int(draws.integers("turns", 4)), (height, width), factor)
