"""The convolutional autoencoder of latent diffusion (Rombach et al. 2022, appendix G), in the standard layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.autoencoder.codebook import Codebook
from components.nets.autoencoder.finite_scalars import FiniteScalars
from components.nets.autoencoder.scales import Scales
from components.nets.blocks import Downsample2D, ResnetBlock2D, SpatialAttention, Upsample2D, group_norm, norm_groups


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock2D(channels, channels, groups=groups) for _ in range(2)])
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, downsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels if layer == 0 else out_channels, out_channels, groups=groups)
            for layer in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)]) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, upsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels if layer == 0 else out_channels, out_channels, groups=groups)
            for layer in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class Encoder(nn.Module):
    """Images (B, C, H, W) -> moments (B, 2 * latent_channels, H / f, W / f)."""

    def __init__(self, channels: int, latent_channels: int, widths: Sequence[int], layers: int, groups: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(level - 1, 0)], width, layers, groups, downsample=level < len(widths) - 1)
            for level, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = group_norm(widths[-1], groups, 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) -> images (B, C, h * f, w * f), not yet bounded."""

    def __init__(self, channels: int, latent_channels: int, widths: Sequence[int], layers: int, groups: int):
        super().__init__()
        widths = list(reversed(widths))
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(level - 1, 0)], width, layers + 1, groups, upsample=level < len(widths) - 1)
            for level, width in enumerate(widths)
        )
        self.conv_norm_out = group_norm(widths[-1], groups, 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Reconstruction(NamedTuple):
    """What a forward gives: images, the posterior's mean and standard deviation, what the decoder was given, the
    log-scale (C,) of its density, where it has one, and, where a codebook trains, the numbers of the mean's codes and
    how far it is from them, if that pulls it."""

    images: Tensor
    mean: Tensor
    std: Tensor
    latents: Tensor
    log_scale: Tensor | None = None
    tokens: Tensor | None = None
    commitment: Tensor | None = None


def spread_of(logvar: Tensor) -> Tensor:
    """The standard deviation of a posterior."""
    return torch.exp(0.5 * logvar.clamp(-30, 20))  # bounds of the published model


class AutoencoderKL(nn.Module):
    """Encoder, decoder and the 1x1 convolutions between them. The downsampling factor f is 2 ** (len(widths) - 1);
    `groups` is the most that a norm has, by default what norm_groups says of the widths.

    With a `codebook` the posterior has no spread, and the decoder takes the nearest codes of whatever it is given
    (Rombach et al. 2022, section 3.1: the quantisation belongs to the decoder). `learn_scale`: the decoder's density
    has a scale a channel, as sigma-VAEs have (Rybkin et al. 2021)."""

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        widths: Sequence[int],
        layers: int,
        codebook: Codebook | FiniteScalars | Scales | None = None,
        learn_scale: bool = False,
        groups: int | None = None,
    ):
        super().__init__()
        groups = groups or norm_groups(widths)
        self.encoder = Encoder(channels, latent_channels, widths, layers, groups)
        self.decoder = Decoder(channels, latent_channels, widths, layers, groups)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.codebook = codebook
        self.log_scale = nn.Parameter(torch.full((channels,), -2.0)) if learn_scale else None

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, each (B, latent_channels, H / f, W / f)."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        if self.codebook is not None:
            return mean, torch.zeros_like(mean)
        return mean, spread_of(logvar)

    def decode(self, latents: Tensor) -> Tensor:
        return self._decode(self._quantised(latents))

    def tokens(self, images: Tensor) -> Tensor:
        """Numbers of the codes of each place, (B, H / f, W / f) int64, or of all scales, (B, N); of a codebook's."""
        return self.codebook.tokens(self.encode(images)[0])

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """The images that the decoder saw in training of these codes."""
        return self._decode(self.codebook.codes_of(tokens))

    def forward(
        self, images: Tensor, noise: Tensor, change: Callable[[Tensor], Tensor] | None = None
    ) -> Reconstruction:
        """Reparameterised reconstruction (Kingma and Welling 2014); `change` is done to the latents before decoding.

        One forward does both halves, so that data-parallel wrappers see every parameter used."""
        mean, std = self.encode(images)
        latents = mean + std * noise
        if change is not None:
            latents = change(latents)
        latents = self._quantised(latents)
        told = ()
        if self.codebook is not None and torch.is_grad_enabled():
            tokens = self.codebook.tokens(mean)
            told = tokens, self.codebook.commitment(mean, tokens)
        return Reconstruction(self._decode(latents), mean, std, latents, self.log_scale, *told)

    def _quantised(self, latents: Tensor) -> Tensor:
        return latents if self.codebook is None else self.codebook(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))
