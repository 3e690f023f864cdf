"""The conditional U-Net of latent diffusion (Rombach et al. 2022, section 3.3), in the standard weight layout."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import (
    Downsample2D,
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2DModel,
    Upsample2D,
    norm_groups,
    sinusoidal_embedding,
)

EPS = 1e-5  # of the U-Net's norms in the published layout; the autoencoder's are 1e-6


class DownBlock(nn.Module):
    def __init__(
        self, channels: Sequence[int], temb: int, heads: int, context_dim: int, attend: bool, downsample: bool
    ):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(before, after, temb, EPS) for before, after in pairwise(channels))
        self.attentions = _attentions(channels[1:], heads, context_dim) if attend else None
        self.downsamplers = nn.ModuleList([Downsample2D(channels[-1], padding=1)]) if downsample else None

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions is not None:
                x = self.attentions[layer](x, context)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    def __init__(self, channels: int, temb: int, heads: int, context_dim: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock2D(channels, channels, temb, EPS) for _ in range(2)])
        self.attentions = _attentions([channels], heads, context_dim)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, temb), context)
        return self.resnets[1](x, temb)


class UpBlock(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skips: Sequence[int],
        temb: int,
        heads: int,
        context_dim: int,
        attend: bool,
        upsample: bool,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D((in_channels if layer == 0 else out_channels) + skip, out_channels, temb, EPS)
            for layer, skip in enumerate(skips)
        )
        self.attentions = _attentions([out_channels] * len(skips), heads, context_dim) if attend else None
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor, skips: list[Tensor], temb: Tensor, context: Tensor) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), temb)
            if self.attentions is not None:
                x = self.attentions[layer](x, context)
        return x if self.upsamplers is None else self.upsamplers[0](x)


def _attentions(widths: Sequence[int], heads: int, context_dim: int) -> nn.ModuleList:
    return nn.ModuleList(Transformer2DModel(width, heads, context_dim) for width in widths)


class UNet2DConditionModel(nn.Module):
    """x (B, C, H, W), noise level (B,) in [0, 1000], class (B,), context (B, M, context_dim) -> (B, C, H, W).

    `widths` gives the channels of each resolution, `attention` where its blocks attend to the context. `num_classes`
    counts the rows of the class embedding, the one for "no class" included; 0 leaves it out.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        attention: Sequence[bool],
        layers: int,
        heads: int,
        context_dim: int,
        num_classes: int,
    ):
        super().__init__()
        temb = 4 * widths[0]
        self.embedding_width = widths[0]
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], temb)
        self.class_embedding = nn.Embedding(num_classes, temb) if num_classes else None
        last = len(widths) - 1
        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            path = [widths[max(level - 1, 0)], *[width] * layers]
            self.down_blocks.append(DownBlock(path, temb, heads, context_dim, attention[level], level < last))
            skips += [width] * (layers + (level < last))
        self.mid_block = MidBlock(widths[-1], temb, heads, context_dim)
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            arriving = widths[min(level + 1, last)]
            taken = [skips.pop() for _ in range(layers + 1)]
            self.up_blocks.append(
                UpBlock(arriving, widths[level], taken, temb, heads, context_dim, attention[level], level > 0)
            )
        self.conv_norm_out = nn.GroupNorm(norm_groups(widths[0]), widths[0], eps=EPS)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor, label: Tensor | None, context: Tensor) -> Tensor:
        temb = self.time_embedding(sinusoidal_embedding(level, self.embedding_width))
        if self.class_embedding is not None:
            temb = temb + self.class_embedding(label)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, kept = block(x, temb, context)
            skips += kept
        x = self.mid_block(x, temb, context)
        for block in self.up_blocks:
            x = block(x, skips, temb, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Uncertainty(nn.Module):
    """u(level): the logarithm of the error to be expected at a noise level, learned along with the net and used by
    training alone (Karras et al. 2024). (B,) levels in [0, 1000] -> (B,)."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, 1)
        # all levels count alike at first
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, level: Tensor) -> Tensor:
        return self.linear(sinusoidal_embedding(level, self.width))[:, 0].float()


class ClassConditionalUNet(nn.Module):
    """A U-Net conditioned on a class twice: added to the noise embedding, and as one token to attend to.

    Class number `num_classes` stands for "no class", as label dropout trains it (Ho and Salimans 2022). With
    `uncertainty` it can tell, beside its answer, the logarithm (B,) of the error that it expects.
    """

    def __init__(self, channels: int, num_classes: int, context_dim: int, uncertainty: bool = False, **layout):
        super().__init__()
        self.null = num_classes
        self.context = nn.Embedding(num_classes + 1, context_dim)
        self.unet = UNet2DConditionModel(channels, context_dim=context_dim, num_classes=num_classes + 1, **layout)
        self.uncertainty = Uncertainty() if uncertainty else None

    def forward(self, x: Tensor, level: Tensor, label: Tensor, uncertain: bool = False):
        answer = self.unet(x, level, label, self.context(label)[:, None])
        return (answer, self.uncertainty(level)) if uncertain else answer
