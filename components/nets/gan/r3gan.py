"""The networks of R3GAN (Huang et al. 2024, section 4): residual blocks of grouped convolutions without norms, the same
for both nets, mirrored."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import embedded
from components.nets.gan.layers import doublings
from components.nets.gan.stylegan2 import enlarge, reduce

_SLOPE = 0.2
_GAIN = math.sqrt(2 / (1 + _SLOPE**2))  # of a leaky ReLU (He et al. 2015)


def initialised(layer: nn.Module, gain: float) -> nn.Module:
    """Weights of variance gain^2 over fan-in, a bias of 0."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """x + conv1x1(act(conv3x3(act(conv1x1(x))))), the middle one wider and in groups. The last starts at 0 and the
    others small by depth, so that a stack without norms starts as the identity (Zhang et al. 2019b, "Fixup")."""

    def __init__(self, channels: int, expansion: int, group_size: int, num_blocks: int):
        super().__init__()
        inner = channels * expansion
        small = _GAIN * num_blocks**-0.25  # three layers, L^(-1 / (2 m - 2))
        self.conv1 = initialised(nn.Conv2d(channels, inner, 1), small)
        self.conv2 = initialised(nn.Conv2d(inner, inner, 3, padding=1, groups=max(1, inner // group_size)), small)
        self.conv3 = initialised(nn.Conv2d(inner, channels, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.leaky_relu(self.conv1(x), _SLOPE)
        return x + self.conv3(F.leaky_relu(self.conv2(inner), _SLOPE))


class Sizes(nn.Module):
    """Common to generator and discriminator: channels at each side from 4 up, blocks a side, and their make."""

    def __init__(self, size: int, width: int, blocks: int, expansion: int, group_size: int):
        super().__init__()
        stages = doublings(size) + 1
        self.widths = [width * min(4, 2**stage) for stage in reversed(range(stages))]
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(*[Block(channels, expansion, group_size, blocks * stages) for _ in range(blocks)])
                for channels in self.widths
            ]
        )
        pairs = itertools.pairwise(self.widths)
        # where channels change a 1x1 convolution carries them over
        self.across = nn.ModuleList([initialised(nn.Conv2d(*self.order(*pair), 1, bias=False), 1.0) for pair in pairs])

    @staticmethod
    def order(lower: int, upper: int) -> tuple[int, int]:
        """Which of the channels at a side and at its double come in, which go out."""
        raise NotImplementedError


class Generator(Sizes):
    """z (B, latent_dim) and the class -> images (B, C, size, size) in about [-1, 1], clamped in evaluation."""

    def __init__(self, channels: int, size: int, latent_dim: int, num_classes: int, embedding_dim: int, **sizes: int):
        super().__init__(size, **sizes)
        self.embedding = nn.Embedding(num_classes, embedding_dim) if num_classes else None
        before = latent_dim + (embedding_dim if num_classes else 0)
        self.basis = nn.Parameter(torch.randn(self.widths[0], 4, 4))
        self.mix = initialised(nn.Linear(before, self.widths[0], bias=False), 1.0)
        self.to_image = initialised(nn.Conv2d(self.widths[-1], channels, 1), 1.0)

    @staticmethod
    def order(lower: int, upper: int) -> tuple[int, int]:
        return lower, upper

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, embedded(self.embedding, label)], dim=1)
        x = self.blocks[0](self.basis * self.mix(z)[:, :, None, None])
        for across, blocks in zip(self.across, self.blocks[1:], strict=True):
            x = blocks(enlarge(across(x)))
        images = self.to_image(x)
        return images if self.training else images.clamp(-1, 1)


class Trunk(Sizes):
    """Images (B, C, size, size) -> maps (B, channels, 4, 4)."""

    def __init__(self, channels: int, size: int, **sizes: int):
        super().__init__(size, **sizes)
        self.from_image = initialised(nn.Conv2d(channels, self.widths[-1], 1), 1.0)
        self.channels = self.widths[0]

    @staticmethod
    def order(lower: int, upper: int) -> tuple[int, int]:
        return upper, lower

    def forward(self, images: Tensor) -> Tensor:
        x = self.from_image(images)
        for across, blocks in zip(reversed(self.across), [*reversed(self.blocks)][:-1], strict=True):
            x = across(reduce(blocks(x)))
        return self.blocks[0](x)


class Head(nn.Module):
    """Maps at 4x4 -> features (B, dim): an inner product with a 4x4 kernel for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.kernel = initialised(nn.Conv2d(channels, channels, 4, groups=channels, bias=False), 1.0)
        self.dim = channels

    def forward(self, maps: Tensor) -> Tensor:
        return self.kernel(maps).flatten(1)
