"""The conditional U-Net of latent diffusion (Rombach et al. 2022, section 3.3), in the standard weight layout."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import (
    Downsample2D,
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2DModel,
    Upsample2D,
    embedded,
    group_norm,
    norm_groups,
    sinusoidal_embedding,
)

EPS = 1e-5  # of the U-Net's norms in the published layout; the autoencoder's are 1e-6


class Attends(NamedTuple):
    """How the blocks of a resolution attend to the context."""

    heads: int
    context_dim: int
    depth: int = 1  # transformer blocks a layer
    linear: bool = False  # as in Transformer2DModel
    groups: int | None = None  # of its norms


class DownBlock(nn.Module):
    def __init__(self, channels: Sequence[int], temb: int, groups: int, attends: Attends | None, downsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(before, after, temb, EPS, groups) for before, after in pairwise(channels)
        )
        self.attentions = _attentions(channels[1:], attends)
        self.downsamplers = nn.ModuleList([Downsample2D(channels[-1], padding=1)]) if downsample else None

    def forward(self, x: Tensor, temb: Tensor, context: Tensor, downsample: bool = True) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions is not None:
                x = self.attentions[layer](x, context)
            skips.append(x)
        if self.downsamplers is not None and downsample:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    def __init__(self, channels: int, temb: int, groups: int, attends: Attends):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock2D(channels, channels, temb, EPS, groups) for _ in range(2)])
        self.attentions = _attentions([channels], attends)

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
        groups: int,
        attends: Attends | None,
        upsample: bool,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D((in_channels if layer == 0 else out_channels) + skip, out_channels, temb, EPS, groups)
            for layer, skip in enumerate(skips)
        )
        self.attentions = _attentions([out_channels] * len(skips), attends)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor, skips: list[Tensor], temb: Tensor, context: Tensor) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), temb)
            if self.attentions is not None:
                x = self.attentions[layer](x, context)
        return x if self.upsamplers is None else self.upsamplers[0](x)


def _attentions(widths: Sequence[int], attends: Attends | None) -> nn.ModuleList | None:
    return nn.ModuleList(Transformer2DModel(width, *attends) for width in widths) if attends else None


class AddedEmbedding(TimestepEmbedding):
    """What Stable Diffusion XL adds to the time's embedding: a pooled text (B, pooled_dim) and `num_sizes` numbers of
    the image's size and crop, each embedded like a time (Podell et al. 2024, section 2.2) -> (B, temb)."""

    def __init__(self, pooled_dim: int, num_sizes: int, width: int, temb: int):
        super().__init__(pooled_dim + num_sizes * width, temb)
        self.width = width

    def forward(self, pooled: Tensor, sizes: Tensor) -> Tensor:  # type: ignore[override]
        embedded = sinusoidal_embedding(sizes.flatten(), self.width).reshape(len(sizes), -1)
        return super().forward(torch.cat([pooled, embedded], dim=1))


class UNet2DConditionModel(nn.Module):
    """x (B, C, H, W), noise level (B,) in [0, 1000], context (B, M, context_dim), class (B,) -> (B, C, H, W).

    A class may be (B, num_classes) weights instead, for what lies between classes. `added` (B, embedding_dim) goes to
    the embedding of level and class.

    `widths` gives the channels of each resolution, `attention` where its blocks attend to the context. `num_classes`
    counts the rows of the class embedding, the one for "no class" included; 0 leaves it out. `heads` and `depth`, the
    transformer blocks a layer, may differ by resolution; the middle goes by the last. `added` makes room for a pooled
    text and sizes: AddedEmbedding's first three arguments. `groups` is the most that a norm has, by default what
    norm_groups says of the widths. `given_channels`: of x that stand before the answer's, such as an image to go by.

    `deep` (B, C, H, W): what all resolutions but the finest make of x, of an evaluation nearby; they are then left out
    (Ma et al. 2024, section 3.2). With `tells_deep` it is answered beside.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        attention: Sequence[bool],
        layers: int,
        heads: int | Sequence[int],
        context_dim: int,
        num_classes: int = 0,
        depth: int | Sequence[int] = 1,
        linear: bool = False,
        added: tuple[int, int, int] | None = None,
        groups: int | None = None,
        given_channels: int = 0,
    ):
        super().__init__()
        temb, groups = 4 * widths[0], groups or norm_groups(widths)
        self.embedding_dim = temb
        self.embedding_width = widths[0]
        self.conv_in = nn.Conv2d(channels + given_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], temb)
        self.class_embedding = nn.Embedding(num_classes, temb) if num_classes else None
        self.add_embedding = AddedEmbedding(*added, temb) if added else None
        last = len(widths) - 1
        self.deep_channels = widths[min(1, last)]
        heads = [heads] * len(widths) if isinstance(heads, int) else heads
        depth = [depth] * len(widths) if isinstance(depth, int) else depth
        attends = [Attends(heads[level], context_dim, depth[level], linear, groups) for level in range(len(widths))]
        at = [attends[level] if attend else None for level, attend in enumerate(attention)]
        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            path = [widths[max(level - 1, 0)], *[width] * layers]
            self.down_blocks.append(DownBlock(path, temb, groups, at[level], level < last))
            skips += [width] * (layers + (level < last))
        self.mid_block = MidBlock(widths[-1], temb, groups, attends[-1])
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            arriving = widths[min(level + 1, last)]
            taken = [skips.pop() for _ in range(layers + 1)]
            self.up_blocks.append(UpBlock(arriving, widths[level], taken, temb, groups, at[level], level > 0))
        self.conv_norm_out = group_norm(widths[0], groups, EPS)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        context: Tensor,
        label: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        added: Tensor | None = None,
        deep: Tensor | None = None,
        tells_deep: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        temb = self.time_embedding(sinusoidal_embedding(level, self.embedding_width))
        if self.class_embedding is not None:
            temb = temb + embedded(self.class_embedding, label)
        if self.add_embedding is not None:
            temb = temb + self.add_embedding(pooled, sizes)
        if added is not None:
            temb = temb + added
        x = self.conv_in(x)
        skips = [x]
        x, kept = self.down_blocks[0](x, temb, context, downsample=deep is None)
        skips += kept
        finest = len(self.up_blocks[-1].resnets)  # takes as many
        if deep is None:
            deep = self._deep(x, skips[finest:], temb, context)
        x = self.up_blocks[-1](deep, skips[:finest], temb, context)
        answer = self.conv_out(F.silu(self.conv_norm_out(x)))
        return (answer, deep) if tells_deep else answer

    def _deep(self, x: Tensor, skips: list[Tensor], temb: Tensor, context: Tensor) -> Tensor:
        """What comes up to the finest resolution from those below."""
        for block in self.down_blocks[1:]:
            x, kept = block(x, temb, context)
            skips += kept
        x = self.mid_block(x, temb, context)
        for block in self.up_blocks[:-1]:
            x = block(x, skips, temb, context)
        return x
