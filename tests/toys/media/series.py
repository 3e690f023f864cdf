"""Series: (1, L) int16 in [-32768, 32767], as sound is stored; files are a number a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.data.media import Medium
from components.data.media import image as images
from components.errors import DataError
from components.metrics.figures import Definition, Figures, named

_HEIGHT = 8  # pixels of a preview
LEVEL = Definition(
    name="level_error",
    label="level error",
    explanation="the distance of the mean absolute values of generated and real series",
    kind="distance",
    better="lower",
)


class Series(Medium):
    name, plural, column = "series", "series", "series"
    dtype, value_range = "int16", (-32768, 32767)
    formats = {"csv": "text/csv", "bin": "application/octet-stream"}

    def to_floats(self, stored: Tensor) -> Tensor:
        return (stored.float() / 32767).clamp(min=-1)

    def to_stored(self, values: Tensor) -> Tensor:
        return (values.float().clamp(-1, 1) * 32767).round().to(torch.int16)

    def refuse_unfit(self, shape: tuple[int, ...], where: str) -> None:
        if len(shape) != 2 or shape[0] != 1:
            raise DataError(f"{where}: expected series of one channel, found {shape}")

    def size(self, shape: tuple[int, ...]) -> str:
        return f"{shape[1]}"

    def read(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        try:
            return np.loadtxt(path, dtype=np.int16).reshape(shape)
        except ValueError as error:
            raise DataError(str(error)) from None

    def encode(self, row: Tensor, file_format: str, quality: int = 90) -> bytes:
        values = self.to_stored(row)[0].cpu().numpy()
        return values.tobytes() if file_format == "bin" else "\n".join(map(str, values)).encode()

    def preview(self, rows: Tensor, columns: int, scale: int = 1) -> bytes:
        """Each row a curve of black on white."""
        height = ((1 - rows[:, 0]) / 2 * (_HEIGHT - 1)).round()  # of each value's pixel, from the top
        curves = torch.where(height[:, None] == torch.arange(_HEIGHT)[:, None], -1.0, 1.0)
        return images.MEDIUM.preview(curves[:, None], columns, scale)

    def preview_scale(self, shape: tuple[int, ...], least: int) -> int:
        return max(1, least // shape[1])

    def figures(self, rows: Tensor, real: Tensor) -> Figures:
        return named(LEVEL.figure((rows.abs().mean() - real.abs().mean()).abs()))

    def strips(self, png: bytes, num_rows: int, shape: tuple[int, ...]) -> list[bytes]:
        return images.MEDIUM.strips(png, num_rows, (1, _HEIGHT, shape[1]))


MEDIUM = Series()
