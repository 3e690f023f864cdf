"""Two towers whose embeddings of an image and of its text point the same way (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import ResnetBlock2D, group_norm, norm_groups
from components.nets.byte_transformer import TextEncoder

MOST_SCALE = math.log(100)  # Radford et al. 2021, section 2.5: what the temperature is kept from passing
FIRST_SCALE = math.log(1 / 0.07)


class ImageTower(nn.Module):
    """Images (B, C, H, W) -> (B, dim), not yet of unit length. A residual block a width; sides halve between them."""

    def __init__(self, channels: int, widths: Sequence[int], dim: int):
        super().__init__()
        groups = norm_groups(widths)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            ResnetBlock2D(before, after, groups=groups) for before, after in pairwise((widths[0], *widths))
        )
        self.norm = group_norm(widths[-1], groups, 1e-6)
        self.project = nn.Linear(widths[-1], dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for number, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if number else x)
        return self.project(F.silu(self.norm(x)).mean(dim=(2, 3)))


class TextTower(TextEncoder):
    """Texts' bytes (B, L) int64, zeros where one has ended -> tokens (B, L, width), and (B, dim), not yet of unit
    length: of the mean over the places that hold bytes, or of the first of an empty text."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        found = self.features(tokens)
        held = F.pad((tokens[:, 1:] > 0).to(found.dtype), (1, 0), value=1.0)
        return found, self.project((found * held[:, :, None]).sum(1) / held.sum(1, keepdim=True))


class Answer(NamedTuple):
    """Of a batch of pairs. `images`, `texts`: (B, dim) of unit length; `scale`: of their cosines, the inverse of the
    learned temperature."""

    images: Tensor
    texts: Tensor
    scale: Tensor


class CLIP(nn.Module):
    """Both towers, and the temperature of their cosines."""

    def __init__(self, image: ImageTower, text: TextTower):
        super().__init__()
        self.image, self.text = image, text
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE))

    def images(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> (B, dim) of unit length."""
        return F.normalize(self.image(images).float(), dim=1)

    def texts(self, tokens: Tensor) -> dict[str, Tensor]:
        """Bytes (B, L) int64 -> `tokens` (B, L, width) and `pooled` (B, dim) of unit length."""
        found, pooled = self.text(tokens)
        return {"tokens": found.float(), "pooled": F.normalize(pooled.float(), dim=1)}

    def forward(self, images: Tensor, tokens: Tensor) -> Answer:
        return Answer(self.images(images), self.texts(tokens)["pooled"], self.log_scale.clamp(max=MOST_SCALE).exp())
