"""Stored values as continuous ones: uniform noise within a value's bin, and back."""

from __future__ import annotations

import math

from torch import Tensor

from components.data.media import Medium
from components.data.randomness import Draws
from components.errors import DataError


def levels(medium: Medium) -> int:
    """How many values a stored number can have. Raises DataError of a medium whose numbers are not whole."""
    low, high = medium.value_range
    if "int" not in medium.dtype:
        raise DataError(f"likelihood: {medium.plural} are stored as {medium.dtype}; expected whole numbers")
    return int(high - low) + 1


def dequantised(rows: Tensor, draws: Draws, count: int, name: str = "dequantise") -> Tensor:
    """Rows (B, C, ...) in [-1, 1] on a grid of `count` values -> values in [-1, 1] where each has a bin of width
    2 / count, uniform within it."""
    return 2 * (indices(rows, count) + draws.uniform(name, tuple(rows.shape[1:]))) / count - 1


def indices(rows: Tensor, count: int) -> Tensor:
    """Rows in [-1, 1] as numbers of their values, 0 to count - 1, of floating point."""
    return ((rows + 1) * ((count - 1) / 2)).round()


def centred(rows: Tensor, count: int) -> Tensor:
    """Rows in [-1, 1] on a grid of `count` values as the middles of their bins: what `on_grid` undoes."""
    return 2 * (indices(rows, count) + 0.5) / count - 1


def on_grid(values: Tensor, count: int) -> Tensor:
    """Values among bins of width 2 / count -> rows in [-1, 1] that are stored as the bin which a value lies in.
    Rounding is left to whoever stores them."""
    return (((values + 1) * (count / 2) - 0.5) * (2 / (count - 1)) - 1).clamp(-1, 1)


def log_bin_volume(num_values: int, count: int) -> float:
    """The logarithm of the volume that a density is integrated over to give a row's probability, in nats."""
    return num_values * math.log(2 / count)
