"""The multi-scale flow: after each scale half of the channels leaves as latents (Dinh et al. 2017, section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.nets.blocks import embedded
from components.nets.flows.layers import ActNorm, Invertible, standard_log_density


class GaussianPrior(nn.Module):
    """A diagonal Gaussian of latents (B, C, H, W) whose mean and scale are read off what stays (B, D, H, W), or, at the
    top, off the class alone (Kingma and Dhariwal 2018, released code). It begins as the standard one."""

    def __init__(self, channels: int, context_channels: int, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(context_channels, 2 * channels, 3, padding=1) if context_channels else None
        self.label = nn.Embedding(num_classes, 2 * channels) if num_classes else None
        self.constant = None if self.conv or self.label else nn.Parameter(torch.zeros(2 * channels))
        for part in (self.conv, self.label):
            for parameter in part.parameters() if part is not None else ():
                nn.init.zeros_(parameter)

    def forward(self, like: Tensor, context: Tensor | None, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean and the logarithm of the standard deviation, (B, C, H, W) each. `like`: (B, C, H, W)."""
        found = like.new_zeros(len(like), 2 * like.shape[1], 1, 1)
        if self.conv is not None:
            found = found + self.conv(context)
        if self.label is not None:
            found = found + embedded(self.label, label)[:, :, None, None]
        if self.constant is not None:
            found = found + self.constant[:, None, None]
        mean, log_std = found.expand(-1, -1, *like.shape[2:]).chunk(2, dim=1)
        return mean, log_std


class MultiscaleFlow(nn.Module):
    """`scales`: the layers of each scale, squeezes included. All scales but the last let half of their channels go.

    `forward(x, label)`: rows (B, C, H, W) -> their log-density (B,) in nats. `sample(z0, z1, ..., label)` undoes it:
    latents of every scale, standard Gaussian, to rows."""

    def __init__(self, scales: Sequence[Sequence[Invertible]], shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.scales = nn.ModuleList(nn.ModuleList(layers) for layers in scales)
        self.latent_shapes = latent_shapes(shape, len(scales))
        last = len(scales) - 1
        self.priors = nn.ModuleList(
            GaussianPrior(channels, 0 if number == last else channels, num_classes)
            for number, (channels, *_) in enumerate(self.latent_shapes)
        )

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        latents, logdet = self.encode(x, label)
        normal = torch.stack([standard_log_density(z) for z in latents]).sum(0)
        return (normal + logdet.double()).float()

    def encode(self, x: Tensor, label: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Rows (B, C, H, W) -> the latents of each scale, standardised, and the whole log-determinant (B,)."""
        latents, total = [], x.new_zeros(len(x))
        for number, layers in enumerate(self.scales):
            for layer in layers:
                x, logdet = layer(x, label)
                total = total + logdet
            z, context = (x, None) if number == len(self.scales) - 1 else x.chunk(2, dim=1)
            mean, log_std = self.priors[number](z, context, label)
            latents.append((z - mean) * (-log_std).exp())
            total = total - log_std.flatten(1).sum(1)
            x = z if context is None else context
        return latents, total

    def sample(self, label: Tensor | None = None, **latents: Tensor) -> Tensor:
        """Rows (B, C, H, W) of standardised latents, `z0` of the first scale and so on."""
        x = None
        for number in reversed(range(len(self.scales))):
            z = latents[f"z{number}"]
            mean, log_std = self.priors[number](z, x, label)
            z = mean + z * log_std.exp()
            x = z if x is None else torch.cat([z, x], dim=1)
            for layer in reversed(self.scales[number]):
                x = layer.inverse(x, label)
        return x

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None = None) -> None:
        """Lets every ActNorm see a batch as it comes to it."""
        for number, layers in enumerate(self.scales):
            for layer in layers:
                if isinstance(layer, ActNorm):
                    layer.begin(x)
                x, _ = layer(x, label)
            if number < len(self.scales) - 1:
                x = x.chunk(2, dim=1)[1]


def latent_shapes(shape: tuple[int, int, int], num_scales: int) -> list[tuple[int, int, int]]:
    """The latents' shapes, scale by scale, of rows (C, H, W) that are squeezed once a scale."""
    channels, height, width = shape
    found = []
    for number in range(num_scales):
        channels, height, width = 4 * channels, height // 2, width // 2
        is_last = number == num_scales - 1
        channels = channels if is_last else channels // 2
        found.append((channels, height, width))
    return found
