"""The convolutional generator and discriminator of Radford et al. 2016, and the critic of Gulrajani et al. 2017."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from components.nets.blocks import class_weights
from components.nets.gan.layers import doublings


class Generator(nn.Module):
    """z (B, latent_dim) -> images (B, C, size, size) in [-1, 1], by transposed convolutions from 4x4 up. With classes,
    the label (B,), or weights of some, joins z as a one-hot vector (Mirza and Osindero 2014)."""

    def __init__(self, channels: int, size: int, latent_dim: int, width: int, num_classes: int = 0):
        super().__init__()
        self.num_classes = num_classes
        stages = doublings(size)
        widths = [width * 2**stage for stage in reversed(range(stages))]  # halving towards the image
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_dim + num_classes, 1, 1)),
            nn.ConvTranspose2d(latent_dim + num_classes, widths[0], 4, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, after in pairwise(widths):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.num_classes:
            z = torch.cat([z, class_weights(label, self.num_classes).to(z)], dim=1)
        return self.layers(z)


class Trunk(nn.Module):
    """Images (B, C, size, size) -> maps (B, channels, 4, 4) by strided convolutions.

    `batch_norm` as in DCGAN; without it the critic of WGAN-GP, whose penalty is defined for each row alone.
    """

    def __init__(self, channels: int, size: int, width: int, batch_norm: bool):
        super().__init__()
        widths = [width * 2**stage for stage in range(doublings(size))]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not batch_norm),
                nn.BatchNorm2d(after) if batch_norm else nn.Identity(),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers)
        self.channels = widths[-1]
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Flat(nn.Flatten):
    """Maps (B, channels, 4, 4) -> features (B, dim). A linear score behind it is DCGAN's last 4x4 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.dim = channels * 16


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), norms' scales from N(1, 0.02) (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
