"""A small residual classifier whose last features describe an image for evaluation."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import ResnetBlock2D, norm_groups


class Classifier(nn.Module):
    """Images (B, C, H, W) -> logits (B, num_classes); `features` gives the (B, feature_dim) before them, of rows that
    `seen` makes images of, where they are none. `groups`: of its norms. Each side has `least` pixels or more."""

    least = 4  # halved twice

    def __init__(
        self,
        channels: int,
        num_classes: int,
        width: int,
        feature_dim: int,
        groups: int | None = None,
        seen: Callable[[Tensor], Tensor] = lambda rows: rows,
    ):
        super().__init__()
        self.seen = seen
        groups = groups or norm_groups((width,))
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResnetBlock2D(before, after, groups=groups)
            for before, after in ((width, width), (width, 2 * width), (2 * width, 2 * width))
        )
        self.project = nn.Linear(2 * width, feature_dim)
        self.classify = nn.Linear(feature_dim, num_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """What each block makes, (B, C, H, W) with H and W halved from one to the next."""
        first = self.blocks[0](self.conv_in(images))
        second = self.blocks[1](F.max_pool2d(first, 2))
        return [first, second, self.blocks[2](F.max_pool2d(second, 2))]

    def features(self, rows: Tensor) -> Tensor:
        return self._features(self.seen(rows))

    def _features(self, images: Tensor) -> Tensor:
        return self.project(F.silu(self.maps(images)[-1]).mean(dim=(2, 3)))

    def logits(self, features: Tensor) -> Tensor:
        return self.classify(F.relu(features))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self._features(images))
