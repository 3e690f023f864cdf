"""What a medium is: the contract that data sets, evaluation, previews and serving rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from components.errors import DataError
from components.metrics.figures import Figures


class Playable(NamedTuple):
    """A file that a browser plays by itself, as its MIME type says: video and moving images loop, sound waits."""

    mime: str
    data: bytes


class Medium(ABC):
    """How the rows of one kind of data are stored, shown, and written to files.

    name, plural:  in manifests, in messages and in the API's paths: image, images
    column:        of a data set, that holds the rows
    dtype:         of stored rows; `value_range` is what they lie in
    formats:       MIME type by file format, as a request names it; the first is the default
    libraries:     that read and write the files
    rate:          values a second along the last axis of sound, or frames a second of film; 0 of what has no time

    A row is (C, ...), channels first whatever the rank. As nets take them rows are float32 in [-1, 1].
    """

    name: ClassVar[str]
    plural: ClassVar[str]
    column: ClassVar[str]
    dtype: ClassVar[str]
    value_range: ClassVar[tuple[float, float]]
    formats: ClassVar[Mapping[str, str]]
    libraries: ClassVar[tuple[str, ...]] = ()
    rate: float = 0.0

    def at(self, rate: float) -> Self:
        """This medium at another rate, where it has one."""
        return self

    def configured(self, data: Mapping[str, Any]) -> tuple[tuple[int, ...], float]:
        """A row's shape and the rate that the keys of the block `data` of params.yaml ask for. Raises DataError of a
        medium that no source's files hold."""
        raise DataError(f"data.medium: {self.plural} are not read from files; expected another medium")

    @abstractmethod
    def to_floats(self, stored: Tensor) -> Tensor:
        """Stored values -> float32 in [-1, 1], of the same shape."""

    @abstractmethod
    def to_stored(self, values: Tensor) -> Tensor:
        """Floats in [-1, 1] (clamped) -> `dtype`, rounded to the nearest level."""

    def quantised(self, values: Tensor) -> Tensor:
        """Floats in [-1, 1] as a viewer gets them, on the CPU: through stored values and back."""
        return self.to_floats(self.to_stored(values).cpu())

    def rows(self, columns: Mapping[str, Tensor]) -> Tensor:
        """The rows among a data set's columns, (B, C, ...) float32 in [-1, 1]."""
        return self.to_floats(columns[self.column])

    @abstractmethod
    def refuse_unfit(self, shape: tuple[int, ...], where: str) -> None:
        """Raises DataError, naming `where`, of a row's shape that this medium cannot have."""

    @abstractmethod
    def size(self, shape: tuple[int, ...]) -> str:
        """A row's extent as a request and a person say it: 64x48, width by height, of an image."""

    @abstractmethod
    def read(self, file: Path | BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
        """A file, or its content, as a stored row of `shape`. Raises DataError with the reason, without the path, if it
        cannot be."""

    def data_row(self, file: Path | BinaryIO, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
        """A file of a data set as a stored row, and how many seconds the file lasts; 0 where it has no time, or does
        not tell. Raises DataError likewise, and of what nothing can be learned from."""
        return self.read(file, shape), 0.0

    @abstractmethod
    def encode(self, row: Tensor, file_format: str, quality: int = 90) -> bytes:
        """One row, floats (C, ...), as a file of one of `formats`. `quality` in [0, 100], where the format has one."""

    def annotated(self, data: bytes, file_format: str, notes: Mapping[str, str]) -> bytes:
        """An encoded file with texts by keyword in it, where its format has a place for them."""
        return data

    def resized(self, row: Tensor, size: str) -> Tensor:
        """One row, floats (C, ...), at another `size`. Raises DataError where that means nothing."""
        raise DataError(f"size: {self.plural} are served at their own size")

    @abstractmethod
    def preview(self, rows: Tensor, columns: int, scale: int = 1) -> bytes:
        """A PNG that shows rows (N, C, ...), `columns` of them beside each other; `scale`: repeats of a pixel."""

    @abstractmethod
    def preview_scale(self, shape: tuple[int, ...], least: int) -> int:
        """The whole `scale` at which a preview shows one row at about `least` pixels, or larger."""

    @abstractmethod
    def strips(self, png: bytes, num_rows: int, shape: tuple[int, ...]) -> list[bytes]:
        """A preview of `num_rows` lines of rows of `shape`, at any scale, cut into a PNG a line."""

    def seen(self, rows: Tensor) -> Tensor:
        """Rows (B, C, ...) in [-1, 1] as classifiers and pixel figures look at them: as they are, or a picture of each
        (B, C', H, W) in [-1, 1]. A function of each row alone, through which gradients flow."""
        return rows

    def num_values(self, rows: Tensor) -> Tensor:
        """(B,) how many values of rows (B, C, ...) mean something; what pads the others has no likelihood."""
        return torch.full((len(rows),), rows[0].numel(), device=rows.device)

    def playable(self, rows: Tensor) -> list[Playable]:
        """Rows (N, C, ...) as files that are played, one each; none of a medium that stands still."""
        return []

    def mirrored(self, rows: Tensor) -> Tensor:
        """Rows (B, C, ...), stored or floats, as a mirror shows them. Raises DataError where that means nothing."""
        raise DataError(f"flips: {self.plural} have no mirror image; expected flips: false")

    def shifted(self, rows: Tensor, offsets: tuple[int, int]) -> Tensor:
        """Rows (B, C, ...), stored or floats, moved down and to the right; edges are drawn out. Raises DataError where
        that means nothing."""
        raise DataError(f"shifts: {self.plural} are not moved; expected shifts: 0")

    def figures(self, rows: Tensor, real: Tensor) -> Figures:
        """Figures of a set that this medium alone has, of generated rows (N, C, ...) beside real held-out ones
        (M, C, ...), both in [-1, 1]."""
        return {}

    def array_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A row's shape in `arrays`."""
        return shape

    def arrays(self, rows: Tensor) -> np.ndarray:
        """Rows (N, C, ...) in [-1, 1] as users of numpy expect them: stored values in their usual order of axes."""
        return self.to_stored(rows).cpu().numpy()

    def stored_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)
