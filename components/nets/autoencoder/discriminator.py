"""A discriminator of patches (Isola et al. 2017, section 3.2): each score sees a part of the image."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import norm_groups


class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) -> scores (B, 1, h, w), each halving of `halvings` doubling the channels from `width`.

    Its norms look at one image alone, so that no score depends on who shares the batch."""

    def __init__(self, channels: int, width: int, halvings: int):
        super().__init__()
        widths = [width * 2 ** min(level, 3) for level in range(halvings)]
        self.conv_in = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(norm_groups((after,)), after) for after in widths[1:])
        self.conv_out = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv_in(images), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.2)
        return self.conv_out(x)
