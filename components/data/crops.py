"""Crops of images, of one size or of a few of about equal area (buckets), each told by where in its image it lies.

A data set with crops keeps beside each image its frame: the whole image, resized to cover its bucket's size `cover`
times, of which the middle is kept. Training takes a crop of each frame, at a place that the row's draws decide. The
image itself, of the data set's one size, stays beside it for all who ask for no crops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Strict
from components.data.media.image import MEDIUM, channels_first, fitted
from components.data.randomness import Draws

RAW_SIZE = "raw_size"  # a column (2,): height, width of the file
CROP = "crop"  # (4,): what is cut off at top, left, bottom, right
FRAME, RESIZED = "frame", "frame_resized"  # (C, H, W), filled with zeros; (2,) sides of the image that it is of
BUCKET = "bucket"  # of a row that a source gives: the number of its bucket
_OF_VIEWS = "frame_"  # begins the names of columns that hold several crops of a row, (K, ...), made beforehand

Size = tuple[int, int]


class CropConfig(Strict):
    """What crops are taken from. `aspect` above 1 makes buckets: sizes of about the area of `image_size`, no longer
    than this many times their shorter side, which images go to by their own aspect."""

    cover: float = Field(1.0, ge=1)  # the image is resized to cover a crop's size this many times
    frame: float = Field(1.5, ge=1)  # the most that is kept of it, in sides of a crop; what is longer loses its ends
    aspect: float = Field(1.0, ge=1)  # the longest bucket's longer side over its shorter one; 1: no buckets
    step: int = Field(8, ge=1)  # pixels that sides of buckets are multiples of

    @model_validator(mode="after")
    def _fits(self) -> CropConfig:
        if self.frame < self.cover:
            raise ValueError(f"frame: expected at least cover ({self.cover:g}), found {self.frame:g}")
        return self

    def sizes(self, main: Size) -> tuple[Size, ...]:
        """Sides of every bucket, the data set's own `main` first."""
        area, found = math.prod(main), [main]
        for low in range(self.step, math.isqrt(area) + 1, self.step):
            high = max(low, self.step * round(area / low / self.step))
            if high <= self.aspect * low:
                found += [(low, high), (high, low)]
        return tuple(dict.fromkeys(found)) if self.aspect > 1 else (main,)


class Placed(NamedTuple):
    """An image's sides after resizing, and the rectangle in its middle that is kept of them."""

    resized: Size
    kept: Size

    @property
    def start(self) -> Size:
        """What is cut off at the top and at the left."""
        return tuple((whole - part) // 2 for whole, part in zip(self.resized, self.kept, strict=True))

    @staticmethod
    def of(raw: Size, size: Size, cover: float = 1.0, most: float = 1.0) -> Placed:
        """An image of sides `raw` that covers `size` `cover` times, of which `most` times `size` are kept."""
        scale = cover * max(side / own for side, own in zip(size, raw, strict=True))
        resized = tuple(max(side, round(own * scale)) for side, own in zip(size, raw, strict=True))
        kept = tuple(min(whole, math.ceil(most * side)) for whole, side in zip(resized, size, strict=True))
        return Placed(resized, kept)


def image_columns(image: Image.Image, shape: tuple[int, ...], config: CropConfig | None) -> dict[str, np.ndarray]:
    """Columns of an 8-bit image without transparency: its middle in `shape` (C, H, W) and, where crops are wanted, its
    raw size, what that middle leaves out, and its frame."""
    columns = {MEDIUM.column: fitted(image, shape)}
    if config is None:
        return columns
    channels, *main = shape
    raw, sizes = (image.height, image.width), config.sizes(tuple(main))
    middle = Placed.of(raw, tuple(main))
    bucket = nearest(raw, sizes)
    placed = Placed.of(raw, sizes[bucket], config.cover, config.frame)
    frame = np.zeros((channels, *(math.ceil(config.frame * side) for side in sizes[bucket])), np.uint8)
    height, width = placed.kept
    frame[:, :height, :width] = _resized(image, placed, channels)
    return columns | {
        RAW_SIZE: np.array(raw, np.int64),
        CROP: _cut(np.array(middle.start), np.array(middle.kept), np.array(middle.resized)),
        FRAME: frame,
        RESIZED: np.array(placed.resized, np.int64),
        BUCKET: np.array(bucket, np.int64),
    }


def nearest(raw: Size, sizes: tuple[Size, ...]) -> int:
    """The number of the size whose aspect is the nearest, by its logarithm; the first of those as near."""
    aspect = math.log(raw[0] / raw[1])
    return min(range(len(sizes)), key=lambda number: abs(math.log(sizes[number][0] / sizes[number][1]) - aspect))


def _resized(image: Image.Image, placed: Placed, channels: int) -> np.ndarray:
    """What is kept of an image, bicubic, antialiased: (C, h, w) uint8."""
    (top, left), (height, width) = placed.start, placed.kept
    down, right = image.height / placed.resized[0], image.width / placed.resized[1]
    box = (left * right, top * down, min((left + width) * right, image.width), min((top + height) * down, image.height))
    converted = image.convert("L" if channels == 1 else "RGB")
    return channels_first(converted.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _cut(start: np.ndarray, size: np.ndarray, resized: np.ndarray) -> np.ndarray:
    """int64 (..., 4): pixels of an image cut off at top, left, bottom and right of a crop."""
    return np.concatenate([start, resized - start - size], axis=-1).astype(np.int64)


def taken(columns: Mapping[str, Tensor], size: Size, draws: Draws) -> dict[str, Tensor]:
    """A crop of `size` of each row's frame, under the names that its image would have, and where it lies. `columns`:
    FRAME and RESIZED, or columns of crops that were made beforehand, one of which is chosen."""
    draws = draws.fold(CROP)
    if FRAME not in columns:
        rows = torch.arange(len(draws.keys))
        views = draws.integers("view", next(iter(columns.values())).shape[1])
        return {name.removeprefix(_OF_VIEWS): values[rows, views] for name, values in columns.items()}
    frames, resized = columns[FRAME], columns[RESIZED]
    wanted = torch.tensor(size)
    kept = torch.minimum(resized, torch.tensor(frames.shape[-2:]))
    free = kept - wanted  # (B, 2) places that a crop may begin at, less one
    start = (draws.uniform("place", (2,)) * (free + 1)).long().minimum(free)
    crops = np.empty((*frames.shape[:2], *size), np.uint8)
    for crop, frame, (top, left) in zip(crops, frames.numpy(), start.tolist(), strict=True):  # faster than an index
        crop[:] = frame[:, top : top + size[0], left : left + size[1]]
    cut = _cut(((resized - kept) // 2 + start).numpy(), np.array(size), resized.numpy())
    return {MEDIUM.column: torch.from_numpy(crops), CROP: torch.from_numpy(cut)}


def views(columns: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Several crops of the same rows, made beforehand, as the columns that `taken` chooses from: (N, K, ...)."""
    return {f"{_OF_VIEWS}{name}": np.stack([one[name] for one in columns], axis=1) for name in columns[0]}


def is_of_frames(column: str) -> bool:
    """Whether a column holds what crops are taken from, rather than what every reader of a row gets."""
    return column == FRAME or column.startswith(_OF_VIEWS)
