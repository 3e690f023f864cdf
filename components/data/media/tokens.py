"""Tokens: (1, ...) uint16, numbers of codes on a grid, as `encode` writes them; files are numpy arrays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from components.data.media.base import Medium
from components.data.media.image import MEDIUM as IMAGES
from components.errors import DataError
from components.shapes import shape_text

MOST = 65535


class TokenMedium(Medium):
    """As floats a token is its place among all numbers that can be stored, which means nothing to a net; families read
    the column itself."""

    name, plural, column = "tokens", "tokens", "tokens"
    dtype, value_range = "uint16", (0, MOST)
    formats = {"npy": "application/octet-stream"}

    def to_floats(self, stored: Tensor) -> Tensor:
        return (stored.double() / (MOST / 2) - 1).float()

    def to_stored(self, values: Tensor) -> Tensor:
        return ((values.double().clamp(-1, 1) + 1) * (MOST / 2)).round().to(torch.uint16)

    def refuse_unfit(self, shape: tuple[int, ...], where: str) -> None:
        if len(shape) < 2 or shape[0] != 1:
            raise DataError(f"{where}: expected tokens of one channel on a grid; found {shape_text(shape)}")

    def size(self, shape: tuple[int, ...]) -> str:
        return shape_text(shape[1:])

    def read(self, file: Path | BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
        try:
            return np.load(file, allow_pickle=False).astype(np.uint16, casting="safe").reshape(shape)
        except (OSError, TypeError, ValueError) as error:
            raise DataError(str(error)) from None

    def encode(self, row: Tensor, file_format: str, quality: int = 90) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, self.to_stored(row).cpu().numpy(), allow_pickle=False)
        return buffer.getvalue()

    def preview(self, rows: Tensor, columns: int, scale: int = 1) -> bytes:
        """Grids, each value a grey between the least and the most that occur."""
        low, high = rows.min(), rows.max()
        grey = 2 * (rows - low) / (high - low).clamp(min=1e-9) - 1
        return IMAGES.preview(grey.reshape(len(rows), 1, rows.shape[2], -1), columns, scale)

    def preview_scale(self, shape: tuple[int, ...], least: int) -> int:
        return max(1, least // shape[-1])

    def strips(self, png: bytes, num_rows: int, shape: tuple[int, ...]) -> list[bytes]:
        return IMAGES.strips(png, num_rows, (1, shape[1], int(np.prod(shape[2:]))))


MEDIUM = TokenMedium()
