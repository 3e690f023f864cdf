"""Companding of sound to 256 values by the mu-law (ITU-T G.711 has its idea; van den Oord et al. 2016b, section 2.2):
steps grow with loudness, as hearing has it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

CODES = 256
_MU = CODES - 1


def companded(values: Tensor) -> Tensor:
    """[-1, 1] -> [-1, 1], quiet values spread out."""
    return values.sign() * torch.log1p(_MU * values.abs()) / math.log1p(_MU)


def codes_of(values: Tensor) -> Tensor:
    """Values in [-1, 1] -> the int64 numbers of their codes, 0 to 255."""
    return ((companded(values) + 1) * (_MU / 2)).round().long().clamp(0, _MU)


def values_of(codes: Tensor, levels: int) -> Tensor:
    """Numbers of codes -> values in [-1, 1] on the grid of `levels` values: the middle one of each code's."""
    return _on(codes.device, _middles, levels)[codes]


def log_bin_sizes(codes: Tensor, levels: int) -> Tensor:
    """Numbers of codes -> the logarithms of how many of `levels` values in [-1, 1] each stands for."""
    return _on(codes.device, _log_counts, levels)[codes]


@functools.cache
def _on(device: torch.device, table: Callable[[int], Tensor], levels: int) -> Tensor:
    """A table on a device, copied there once: the host would wait for every copy."""
    with torch.inference_mode(False):
        return table(levels).to(device)


@functools.cache
def _log_counts(levels: int) -> Tensor:
    with torch.inference_mode(False):
        return _counts(levels).log()


@functools.cache
def _grid(levels: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(levels, dtype=torch.float32) * (2 / (levels - 1)) - 1


@functools.cache
def _counts(levels: int) -> Tensor:
    with torch.inference_mode(False):
        counts = torch.bincount(codes_of(_grid(levels)), minlength=CODES)
        assert bool(counts.all()), "every code stands for some value, or it could not be drawn"
        return counts.float()


@functools.cache
def _middles(levels: int) -> Tensor:
    with torch.inference_mode(False):
        sizes = _counts(levels).long()
        first = sizes.cumsum(0) - sizes
        return _grid(levels)[first + (sizes - 1) // 2]
