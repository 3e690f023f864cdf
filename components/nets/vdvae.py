"""The hierarchical variational autoencoder of Child 2021: latents from the coarsest resolution to the finest, each
given all before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import embedded

_LOG_STD = 5.0  # the most that a log-scale lies away from 0, so that no step makes one overflow


class Bottleneck(nn.Module):
    """Four convolutions (B, in, H, W) -> (B, out, H, W), the middle two of `kernel` (figure 3; no norms). `gain`: of
    the last one's initial weights."""

    def __init__(self, in_channels: int, middle: int, out_channels: int, kernel: int, gain: float):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(in_channels, middle, 1),
                nn.Conv2d(middle, middle, kernel, padding=kernel // 2),
                nn.Conv2d(middle, middle, kernel, padding=kernel // 2),
                nn.Conv2d(middle, out_channels, 1),
            ]
        )
        for conv in self.convs:
            is_last = conv is self.convs[-1]
            std = gain / math.sqrt(conv.weight[0].numel()) if is_last else math.sqrt(2 / conv.weight[0].numel())
            nn.init.normal_(conv.weight, 0.0, std)  # He et al. 2015; torch's own would let nothing through at first
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(F.gelu(x))
        return x


class Latent(NamedTuple):
    """What a block says of its latents, in float32: z itself by the prior's measure, (B, Z, H, W); in nats, (B,) each,
    the divergence of posterior from prior, and log p(z) / q(z | x)."""

    away: Tensor
    divergence: Tensor
    log_ratio: Tensor


class TopDownBlock(nn.Module):
    """Latents (B, Z, H, W) into the stream (B, width, H, W). The prior is read off the stream, and goes into it beside
    them; the posterior is told what the encoder saw, and is relative to the prior (Vahdat and Kautz 2020, section 3.2):
    z = prior mean + prior scale (mean + scale noise)."""

    recomputable = True

    def __init__(self, width: int, middle: int, latent_channels: int, kernel: int, gain: float):
        super().__init__()
        self.width, self.latent_channels = width, latent_channels
        self.prior = Bottleneck(width, middle, 2 * latent_channels + width, kernel, gain=0.0)
        self.posterior = Bottleneck(2 * width, middle, 2 * latent_channels, kernel, gain=1.0)
        self.enter = nn.Conv2d(latent_channels, width, 1)
        self.residual = Bottleneck(width, middle, width, kernel, gain)
        nn.init.normal_(self.enter.weight, 0.0, gain / math.sqrt(latent_channels))
        with torch.no_grad():  # little noise at first: under much, a short training learns to do without latents
            self.posterior.convs[-1].bias[latent_channels:] = -2.0

    def forward(self, x: Tensor, noise: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Latent | None]:
        """The stream after the block; latents from the posterior where the encoder's `seen` (B, width, H, W) is there,
        else from the prior. `noise`: (B, Z, H, W), standard normal."""
        told = self.prior(x)
        mean, log_std = told[:, : -self.width].float().chunk(2, dim=1)
        away, latent = noise, None
        if seen is not None:
            moved, stretch = self.posterior(torch.cat([x, seen], dim=1)).float().chunk(2, dim=1)
            stretch = stretch.clamp(-_LOG_STD, _LOG_STD)
            away = moved + stretch.exp() * noise
            divergence = 0.5 * (moved.square() + (2 * stretch).exp() - 1) - stretch
            log_ratio = 0.5 * (noise.square() - away.square()) + stretch
            latent = Latent(away, divergence.flatten(1).sum(1), log_ratio.flatten(1).sum(1))
        z = mean + log_std.clamp(-_LOG_STD, _LOG_STD).exp() * away
        x = x + told[:, -self.width :] + self.enter(z)
        return x + self.residual(x), latent


class Encoded(NamedTuple):
    """What a forward gives: numbers of the pixels' density (B, outputs, H, W), and of all latents together what Latent
    has of one block's: `latents` (B, num_latents) are the noise that `sample` makes the same of."""

    numbers: Tensor
    latents: Tensor
    divergence: Tensor
    log_ratio: Tensor


class HierarchicalVAE(nn.Module):
    """`blocks`: top-down blocks of each resolution, the images' own first; each next one has half the sides. `layers`:
    the encoder's blocks a resolution. Noise comes flat, (B, num_latents), the coarsest block's first; a `label` is
    (B,) int64 or weights (B, num_classes), where there are classes."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        width: int,
        middle: int,
        latent_channels: int,
        blocks: Sequence[int],
        layers: int,
        num_classes: int,
    ):
        super().__init__()
        channels, *sides = shape
        self.sides = [[side // 2**level for side in sides] for level in range(len(blocks))]
        kernels = [3 if min(level) > 2 else 1 for level in self.sides]  # a wider one would see mostly its padding
        depth = 1 / math.sqrt(sum(blocks))
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        seeing = 1 / math.sqrt(layers * len(blocks))
        self.encoder = nn.ModuleList(
            nn.ModuleList(Bottleneck(width, middle, width, kernel, seeing) for _ in range(layers)) for kernel in kernels
        )
        self.levels = nn.ModuleList(
            nn.ModuleList(TopDownBlock(width, middle, latent_channels, kernel, depth) for _ in range(count))
            for kernel, count in zip(kernels, blocks, strict=True)
        )
        # what the stream begins with, or has added, at each resolution
        self.start = nn.ParameterList(nn.Parameter(torch.zeros(width, *level)) for level in self.sides)
        self.label = nn.Embedding(num_classes, width * len(blocks)) if num_classes else None
        self.conv_out = nn.Conv2d(width, outputs, 3, padding=1)
        self.shapes = [
            (latent_channels, *self.sides[level]) for level in self._downwards() for _ in range(blocks[level])
        ]
        self.num_latents = sum(math.prod(one) for one in self.shapes)

    def forward(self, images: Tensor, noise: Tensor, label: Tensor | None = None) -> Encoded:
        """Of latents drawn from the posterior of images (B, C, H, W)."""
        numbers, found = self._decoded(noise, label, self._seen(images))
        away, divergences, log_ratios = zip(*found, strict=True)
        latents = torch.cat([part.flatten(1) for part in away], dim=1)
        return Encoded(numbers, latents, torch.stack(divergences).sum(0), torch.stack(log_ratios).sum(0))

    def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The numbers of the pixels' density (B, outputs, H, W), of latents drawn from the prior."""
        return self._decoded(noise, label)[0]

    def _seen(self, images: Tensor) -> list[Tensor]:
        """What the encoder sees at each resolution, (B, width, h, w)."""
        x, seen = self.conv_in(images), []
        for level, blocks in enumerate(self.encoder):
            x = F.avg_pool2d(x, 2) if level else x
            for block in blocks:
                x = x + block(x)
            seen.append(x)
        return seen

    def _decoded(
        self, noise: Tensor, label: Tensor | None, seen: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Latent | None]]:
        noises = iter(noise.split([math.prod(shape) for shape in self.shapes], dim=1))
        told = None if self.label is None else embedded(self.label, label).chunk(len(self.levels), dim=1)
        x, found = None, []
        for level in self._downwards():
            begun = self.start[level].expand(len(noise), -1, -1, -1)
            begun = begun if told is None else begun + told[level][:, :, None, None]
            x = begun if x is None else begun + F.interpolate(x, scale_factor=2.0, mode="nearest")
            for block in self.levels[level]:
                drawn = next(noises).unflatten(1, (block.latent_channels, *self.sides[level]))
                x, latent = block(x, drawn, None if seen is None else seen[level])
                found.append(latent)
        return self.conv_out(F.gelu(x)).float(), found

    def _downwards(self) -> range:
        """Resolutions from the coarsest."""
        return range(len(self.sides) - 1, -1, -1)
