"""Conditioning on a smaller image, noised by a level of its own that the net is told (noise-conditioning augmentation:
Ho et al. 2022, Cascaded Diffusion Models, section 4.2; Saharia et al. 2022, section 2.4).

In training the smaller image is a real one averaged down, in sampling what another net has drawn; the noise hides what
tells them apart.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.shapes import per_row

LOW, LOW_LEVEL = "low", "low_level"  # inputs of a net: the smaller image, at x's sides, and its level in [0, 1]


class LowResolution(nn.Module):
    """Hands a denoiser the noised smaller image `low` (B, C, ...) as channels beside x."""

    names = (LOW,)

    def forward(self, x: Tensor, condition: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.cat([x, condition.pop(LOW)], dim=1), condition


def reduced(images: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Images (B, C, H, W) averaged down to other sides."""
    return F.interpolate(images, sides, mode="bilinear", antialias=True, align_corners=False)


def enlarged(images: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Images (B, C, h, w) brought up to other sides: the same in training and in sampling."""
    return F.interpolate(images, sides, mode="bilinear", align_corners=False)


def noised(low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """The variance-preserving forward process on rows (B, C, ...) of about unit spread, at levels (B,) in [0, 1]: 0
    leaves them, 1 leaves nothing of them."""
    angle = per_row(level * (math.pi / 2), low)
    return angle.cos() * low + angle.sin() * noise
