"""Spectra of sound: short-time Fourier transforms, mel scales, and waves from magnitudes alone.

Waves are (B, L) float32 in [-1, 1], spectra (B, F, T): F frequencies, T frames. L must be whole hops; frame t looks at
a window of WINDOW hops about the middle of hop t, so that there are as many frames as hops.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 4  # hops a window
FLOOR = -80.0  # decibels below a sine of full scale, that count as silence
_PACE = 0.016  # seconds a hop, about
_BANDS = 32


def usual_hop(rate: float) -> int:
    """Samples from a frame to the next: a power of two, about 16 ms."""
    return 2 ** round(math.log2(rate * _PACE))


def stft(waves: Tensor, hop: int) -> Tensor:
    """Complex spectra of which a sine of full scale has magnitude 1."""
    size = WINDOW * hop
    before = (size - hop) // 2
    padded = F.pad(waves, (before, size - hop - before))
    window = _window(size, waves)
    return torch.stft(padded, size, hop, window=window, center=False, return_complex=True) * (2 / (size / 2))


def istft(spectra: Tensor, hop: int) -> Tensor:
    """The waves (B, T * hop) whose spectra are nearest to complex ones (Griffin and Lim 1984, equation 6)."""
    size, num_frames = WINDOW * hop, spectra.shape[2]
    before = (size - hop) // 2
    window = _window(size, spectra.real)
    pieces = torch.fft.irfft(spectra * (size / 4), n=size, dim=1) * window[:, None]
    length = (num_frames - 1) * hop + size
    summed = _overlapped(pieces, hop, length)
    weight = _overlapped(window.square()[None, :, None].expand(1, size, num_frames), hop, length)
    inside = slice(before, before + num_frames * hop)
    return summed[:, inside] / weight[:, inside].clamp(min=1e-8)


def _overlapped(pieces: Tensor, hop: int, length: int) -> Tensor:
    """Frames (B, size, T) added up where they overlap, (B, length)."""
    return F.fold(pieces, (1, length), (1, pieces.shape[1]), stride=(1, hop))[:, 0, 0]


def _window(size: int, like: Tensor) -> Tensor:
    """Hann's, periodic."""
    return _hann(size, like.dtype, like.device)


@functools.lru_cache(maxsize=16)
def _hann(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    values = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    with torch.inference_mode(False):  # training may ask later for what sampling asked for first
        return torch.as_tensor(values, dtype=dtype, device=device)


def mel_filters(rate: float, num_frequencies: int, bands: int) -> np.ndarray:
    """(bands, num_frequencies): triangles evenly spread over the mel scale up to half the rate, each of sum 1."""
    # O'Shaughnessy 1987: 2595 log10(1 + f / 700)
    mels = np.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, num_frequencies)
    # low bands narrower than a frequency's spacing would catch none
    width = np.diff(edges).clip(min=rate / 2 / (num_frequencies - 1))
    rising = (frequencies - (edges[1:-1] - width[:-1])[:, None]) / width[:-1, None]
    falling = ((edges[1:-1] + width[1:])[:, None] - frequencies) / width[1:, None]
    filters = np.minimum(rising, falling).clip(min=0)
    return filters / filters.sum(1, keepdims=True)


@functools.lru_cache(maxsize=16)
def _filters(rate: float, num_frequencies: int, bands: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.as_tensor(mel_filters(rate, num_frequencies, bands), dtype=dtype, device=device)


def log_mel(waves: Tensor, rate: float, hop: int, bands: int = _BANDS) -> Tensor:
    """(B, bands, T) in [-1, 1]: from FLOOR decibels to full scale."""
    power = stft(waves, hop).abs().square()
    filters = _filters(rate, power.shape[1], bands, power.dtype, power.device)
    return compressed((filters @ power).clamp(min=1e-12).sqrt())


def compressed(magnitudes: Tensor) -> Tensor:
    """Magnitudes -> decibels between FLOOR and 0 as values in [-1, 1]."""
    decibels = 20 * magnitudes.clamp(min=10 ** (FLOOR / 20)).log10()
    return (1 - 2 * decibels / FLOOR).clamp(-1, 1)


def expanded(values: Tensor) -> Tensor:
    """Values in [-1, 1] -> magnitudes, of which the floor is 0."""
    magnitudes = 10 ** ((1 - values.clamp(-1, 1)) * (FLOOR / 40))
    return torch.where(values > -1 + 1e-3, magnitudes, 0.0)


def griffin_lim(magnitudes: Tensor, hop: int, steps: int, phases: Tensor, momentum: float = 0.99) -> Tensor:
    """Waves (B, T * hop) whose spectra have about these magnitudes (B, F, T), from initial `phases` in turns, of the
    same shape (Griffin and Lim 1984; with momentum, Perraudin et al. 2013)."""
    angles = torch.polar(torch.ones_like(magnitudes), 2 * math.pi * phases)
    before = torch.zeros_like(angles)
    for _ in range(steps):
        consistent = stft(istft(magnitudes * angles, hop), hop)
        ahead = consistent - (momentum / (1 + momentum)) * before
        angles, before = ahead / ahead.abs().clamp(min=1e-9), consistent
    return istft(magnitudes * angles, hop)
