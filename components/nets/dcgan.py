"""The convolutional generator and discriminator of Radford et al. 2016, and the critic of Gulrajani et al. 2017."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


def doublings(size: int) -> int:
    """How often 4 doubles to `size`. Raises ValueError if it does not."""
    if size < 8 or size & (size - 1):
        raise ValueError(f"expected an image side of 8, 16, 32, 64, ..., found {size}")
    return size.bit_length() - 3


class Generator(nn.Module):
    """z (B, latent_dim) -> images (B, C, size, size) in [-1, 1], by transposed convolutions from 4x4 up."""

    def __init__(self, channels: int, size: int, latent_dim: int, width: int):
        super().__init__()
        stages = doublings(size)
        widths = [width * 2**stage for stage in reversed(range(stages))]  # halving towards the image
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_dim, 1, 1)),
            nn.ConvTranspose2d(latent_dim, widths[0], 4, bias=False),
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

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Discriminator(nn.Module):
    """Groups of images, each (B, C, size, size) -> one score a row, each (B,), by strided convolutions down to 4x4.

    `batch_norm` as in DCGAN, over each group by itself, for reals and fakes differ; without it the critic of WGAN-GP,
    whose penalty is defined for each row alone.
    """

    def __init__(self, channels: int, size: int, width: int, batch_norm: bool):
        super().__init__()
        stages = doublings(size)
        widths = [width * 2**stage for stage in range(stages)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not batch_norm),
                nn.BatchNorm2d(after) if batch_norm else nn.Identity(),
                nn.LeakyReLU(0.2),
            ]
        layers += [nn.Conv2d(widths[-1], 1, 4), nn.Flatten(0)]
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, *groups: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.layers(images) for images in groups)


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), norms' scales from N(1, 0.02) (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
