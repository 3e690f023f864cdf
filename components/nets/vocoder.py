"""Vocoder: from mel spectra back to waves. A net of frames tells the whole spectrum of each, and waves come from the
inverse transform (Siuzdak 2024, Vocos, on the blocks of Liu et al. 2022, ConvNeXt)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components import spectra
from components.nets.autoencoder.discriminator import PatchDiscriminator

SILENT = -0.95  # a frame whose loudest band is below it, 2 dB above the floor, is silent


class Block(nn.Module):
    """(B, W, T) -> (B, W, T): a depthwise convolution in time, then two layers in every frame."""

    recomputable = True

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.mix(x).transpose(1, 2))
        return x + (self.scale * self.down(F.gelu(self.up(h)))).transpose(1, 2)


class Vocoder(nn.Module):
    """An autoencoder of clips (B, 1, T * hop): `encode` is the mel spectrum (B, 1, bands, T) of a posterior without
    spread, `decode` makes a wave of one. `forward` tells the spectra (B, F, T) of mel spectra (B, bands, T): decibels
    as values in [-1, 1] (spectra.compressed) and, if `phased`, phases; otherwise `steps` of Griffin and Lim find these.
    """

    def __init__(self, rate: float, hop: int, bands: int, width: int, depth: int, steps: int, phased: bool = False):
        super().__init__()
        self.rate, self.hop, self.bands, self.steps, self.phased = rate, hop, bands, steps, phased
        self.frequencies = spectra.WINDOW * hop // 2 + 1
        self.register_buffer("spread", _spread(rate, self.frequencies, bands), persistent=False)
        self.embed = nn.Conv1d(bands, width, 7, padding=3)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.frequencies * (3 if phased else 1))
        nn.init.zeros_(self.head.weight[: self.frequencies])

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.embed(mel)
        for block in self.blocks:
            x = block(x)
        found = self.head(self.norm(x.transpose(1, 2))).float().transpose(1, 2)
        values = self.spread @ mel + found[:, : self.frequencies]
        return values, torch.atan2(*found[:, self.frequencies :].chunk(2, dim=1)) if self.phased else None

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        mel = spectra.log_mel(rows[:, 0], self.rate, self.hop, self.bands)[:, None]
        return mel, torch.zeros_like(mel)

    def decode(self, latents: Tensor) -> Tensor:
        """Waves (B, 1, T * hop), of exact zeros from the last frame on that is not silent."""
        mel = latents[:, 0].clamp(-1, 1)
        waves = self.waves(*self(mel))
        return (waves * self.sounding(mel))[:, None]

    def waves(self, values: Tensor, phases: Tensor | None) -> Tensor:
        """(B, T * hop) of what `forward` tells."""
        magnitudes = spectra.expanded(values)
        if phases is not None:
            return spectra.istft(torch.polar(magnitudes, phases), self.hop)
        # the same arbitrary phases for every row, so that a row is what it is alone
        shape = magnitudes.shape[1:]
        places = torch.arange(shape.numel(), device=magnitudes.device, dtype=torch.float64)
        start = (places * 0.6180339887498949 + places.square() * 0.7548776662466927).frac().view(shape).float()
        return spectra.griffin_lim(magnitudes, self.hop, self.steps, start.expand_as(magnitudes))

    def sounding(self, mel: Tensor) -> Tensor:
        """(B, T * hop) of 1 before the last frame that is not silent, 0 from there on: windows reach beyond their
        frames, so that the first one behind a clip still hears it."""
        loud = (mel.amax(1) > SILENT).float()
        until_last = loud.flip(1).cummax(1).values.flip(1)
        return torch.cat([until_last[:, 1:], loud[:, -1:]], 1).repeat_interleave(self.hop, 1)


class SpectraDiscriminator(nn.Module):
    """Waves (B, L) -> scores (B, N) of the patches of their complex spectra, which have phases to be wrong about, at
    several resolutions (Jang et al. 2021, UnivNet, section 2.2, of magnitudes). `hops`: samples a frame of each;
    `width` and `halvings` as of PatchDiscriminator."""

    def __init__(self, hops: Sequence[int], width: int, halvings: int):
        super().__init__()
        self.hops = tuple(hops)
        self.parts = nn.ModuleList(PatchDiscriminator(2, width, halvings) for _ in hops)

    def forward(self, waves: Tensor) -> Tensor:
        scores = [part(self._seen(waves, hop)) for part, hop in zip(self.parts, self.hops, strict=True)]
        return torch.cat([score.flatten(1) for score in scores], 1)

    def _seen(self, waves: Tensor, hop: int) -> Tensor:
        """(B, 2, F - 1, T), magnitudes to the power of 0.3: quiet tones weigh more than they are loud."""
        spectrum = spectra.stft(waves, hop)[:, :-1]
        parts = torch.stack([spectrum.real, spectrum.imag], 1)
        return parts * (parts.square().sum(1, keepdim=True) + 1e-6).pow(-0.35)


def resolutions(hop: int) -> tuple[int, ...]:
    """The hops of spectra that waves are compared by: whole ones fit where `hop` does."""
    return tuple(length for length in (hop // 4, hop // 2, hop) if length and hop % length == 0)


def apart(waves: Tensor, others: Tensor, hop: int) -> Tensor:
    """The mean distance of waves' (B, L) decibels at several resolutions, half of their span being 1 (Yamamoto et al.
    2020, section 2.2)."""
    told = [
        spectra.compressed(spectra.stft(waves, length).abs()) - spectra.compressed(spectra.stft(others, length).abs())
        for length in resolutions(hop)
    ]
    return torch.stack([difference.abs().mean() for difference in told]).mean()


def _spread(rate: float, frequencies: int, bands: int) -> Tensor:
    """(F, bands): what the bands say of each frequency, where the net begins; beyond the outermost bands' middles as
    much as these."""
    shares = spectra.mel_filters(rate, frequencies, bands)
    shares = shares / shares.sum(0).clip(min=1e-6)
    heard = np.flatnonzero(shares.sum(0) > 0.5)
    return torch.as_tensor(shares.T[np.arange(frequencies).clip(heard[0], heard[-1])], dtype=torch.float32)
