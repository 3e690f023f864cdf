"""Shapes of rows of any rank: the channel comes first in a row, the row first in a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from components.errors import SamplerError


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """A value a row, (B,) -> (B, 1, ..., 1), to go with `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """A value a channel, (C,) -> (C, 1, ..., 1), to go with `like` (B, C, ...)."""
    return values.view(-1, *[1] * (like.ndim - 2))


def pooled(mask: Tensor, sides: tuple[int, ...]) -> Tensor:
    """A mask (B, 1, ...) brought to fewer cells, each as large as the largest value in it."""
    pool = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[len(sides)]
    return pool(mask, sides)


def all_but_channels(ndim: int) -> tuple[int, ...]:
    """The axes of a batch (B, C, ...) that a figure of each channel is taken over."""
    return (0, *range(2, ndim))


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for messages: 1x16x16."""
    return "x".join(map(str, shape))


def refuse_unless_planar(shape: tuple[int, ...], multiple: int, name: str) -> None:
    """Raises SamplerError, naming the family, unless rows are channels, height and width, and both sides divisible by
    `multiple`."""
    if len(shape) != 3:
        raise SamplerError(f"{name}: expected rows of channels, height and width, found {shape_text(shape)}")
    _, height, width = shape
    if height % multiple or width % multiple:
        found = f"found {height}x{width}"
        raise SamplerError(f"{name}: expected a height and width that are multiples of {multiple}, {found}")


def refuse_smaller(shape: tuple[int, ...], least: int, name: str, rows: str = "rows") -> None:
    """Raises SamplerError, naming the family, of pictures (C, H, W) with a side of fewer than `least` pixels. `rows`:
    what it sees as these pictures."""
    if min(shape[1:]) < least:
        found = f"found {shape_text(shape[1:])}"
        raise SamplerError(f"{name}: expected {rows} with a height and width of at least {least}, {found}")


def refuse_unless_film(shape: tuple[int, ...], frames: int, multiple: int, name: str) -> None:
    """Raises SamplerError, naming the family, unless rows are channels, 1 and a multiple of `frames` frames, height and
    width, and both sides divisible by `multiple`."""
    if len(shape) != 4 or shape[1] % frames != 1 % frames:
        found = f"found {shape_text(shape)}"
        raise SamplerError(f"{name}: expected rows of channels, 1 and {frames} k frames, height and width, {found}")
    refuse_unless_planar((shape[0], *shape[2:]), multiple, name)


def refuse_unless_square(shape: tuple[int, ...], name: str) -> None:
    """Raises SamplerError, naming the family, unless rows are channels, height and width, the sides equal."""
    refuse_unless_planar(shape, 1, name)
    _, height, width = shape
    if height != width:
        raise SamplerError(f"{name}: expected square images, found {height}x{width}")
