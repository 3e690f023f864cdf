"""Clips: (C, T, H, W) uint8, one or three channels; files are animated GIFs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from components.data.media import Medium
from components.data.media import image as images
from components.errors import DataError


class Clip(Medium):
    name, plural, column = "clip", "clips", "frames"
    dtype, value_range = "uint8", (0, 255)
    formats = {"gif": "image/gif"}

    def to_floats(self, stored: Tensor) -> Tensor:
        return images.MEDIUM.to_floats(stored)

    def to_stored(self, values: Tensor) -> Tensor:
        return images.MEDIUM.to_stored(values)

    def refuse_unfit(self, shape: tuple[int, ...], where: str) -> None:
        if len(shape) != 4:
            raise DataError(f"{where}: expected clips of channels, frames, height, width; found {shape}")

    def size(self, shape: tuple[int, ...]) -> str:
        _, frames, height, width = shape
        return f"{width}x{height}x{frames}"

    def read(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        channels, count, *sides = shape
        with Image.open(path) as opened:
            frames = [
                images.fitted(frame.convert("RGB"), (channels, *sides)) for frame in ImageSequence.Iterator(opened)
            ]
        if len(frames) < count:
            raise DataError(f"{len(frames)} frames, expected {count}")
        return np.stack(frames[:count], axis=1)

    def encode(self, row: Tensor, file_format: str, quality: int = 90) -> bytes:
        buffer = io.BytesIO()
        first, *others = (images.MEDIUM.picture(frame) for frame in row.movedim(1, 0))
        first.save(buffer, file_format, save_all=True, append_images=others)
        return buffer.getvalue()

    def preview(self, rows: Tensor, columns: int, scale: int = 1) -> bytes:
        """Each row a film strip."""
        return images.MEDIUM.preview(torch.cat(rows.unbind(2), dim=-1), columns, scale)

    def preview_scale(self, shape: tuple[int, ...], least: int) -> int:
        return images.MEDIUM.preview_scale(shape, least)

    def strips(self, png: bytes, num_rows: int, shape: tuple[int, ...]) -> list[bytes]:
        channels, frames, height, width = shape
        return images.MEDIUM.strips(png, num_rows, (channels, height, frames * width))

    def mirrored(self, rows: Tensor) -> Tensor:
        return rows.flip(-1)


MEDIUM = Clip()
