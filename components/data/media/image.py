"""Images: (C, H, W), one channel (grey) or three (RGB), uint8 in [0, 255] on disk and on the wire.

Files are read and written by Pillow. A generated image is never smoothed or enlarged except for display.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from components.data.media.base import Medium
from components.errors import DataError
from components.shapes import shape_text

# by EXIF's Orientation (CIPA DC-008-2019, 4.6.4): how to turn what is stored
_TURNS = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)
_GAP = 1  # pixels between the images of a preview
T = TypeVar("T")
_PNG_HEADER = 8 + 25  # bytes of the signature and the chunk IHDR, after which others may stand (W3C PNG, 5.6)


class ImageMedium(Medium):
    name, plural, column = "image", "images", "image"
    dtype, value_range = "uint8", (0, 255)
    formats = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
    libraries = ("pillow",)

    def configured(self, data: Mapping[str, Any]) -> tuple[tuple[int, ...], float]:
        size = data["image_size"]
        return (data["channels"], *((size, size) if isinstance(size, int) else size)), 0.0

    def to_floats(self, stored: Tensor) -> Tensor:
        return stored.float() / 127.5 - 1

    def to_stored(self, values: Tensor) -> Tensor:
        return ((values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def refuse_unfit(self, shape: tuple[int, ...], where: str) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(f"{where}: expected images of 1 or 3 channels, height, width; found {shape_text(shape)}")

    def size(self, shape: tuple[int, ...]) -> str:
        _, height, width = shape
        return f"{width}x{height}"

    def read(self, file: Path | BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
        """The first frame, upright, transparency composited on white, brought to `shape` by `fitted`."""
        return self.opened(file, lambda image: fitted(image, shape))

    def opened(self, file: Path | BinaryIO, use: Callable[[Image.Image], T]) -> T:
        """What `use` makes of a file's first frame, 8-bit, upright, on white. Raises DataError with the reason, without
        the path, if it cannot be."""
        try:
            with Image.open(file) as opened:
                image = eight_bit(upright(opened))
            return use(on_white(image))
        except UnidentifiedImageError:
            raise DataError("not an image of any format that Pillow knows") from None
        except Exception as error:  # what Pillow raises of damaged files is of many kinds
            reason = error.strerror if isinstance(error, OSError) and error.strerror else None
            raise DataError(reason or f"{type(error).__name__}: {error}") from None

    def encode(self, row: Tensor, file_format: str, quality: int = 90) -> bytes:
        buffer = io.BytesIO()
        self.picture(row).save(buffer, file_format, **({} if file_format == "png" else {"quality": quality}))
        return buffer.getvalue()

    def annotated(self, data: bytes, file_format: str, notes: Mapping[str, str]) -> bytes:
        """PNG alone: chunks iTXt, UTF-8, before the pixels."""
        if file_format != "png":
            return data
        chunks = [
            _chunk(b"iTXt", name.encode("latin-1") + b"\0\0\0\0\0" + text.encode()) for name, text in notes.items()
        ]
        return b"".join((data[:_PNG_HEADER], *chunks, data[_PNG_HEADER:]))

    def resized(self, row: Tensor, size: str) -> Tensor:
        """Bicubic, antialiased."""
        width, height = map(int, size.split("x"))
        scaled = functional.interpolate(row[None].float(), (height, width), mode="bicubic", antialias=True)
        return scaled[0].clamp(-1, 1)

    def preview(self, rows: Tensor, columns: int, scale: int = 1) -> bytes:
        """A grid with white gaps."""
        picture = self.picture(grid(rows, columns))
        size = (picture.width * scale, picture.height * scale)
        return _png(picture.resize(size, Image.Resampling.NEAREST))

    def preview_scale(self, shape: tuple[int, ...], least: int) -> int:
        return max(1, least // shape[-1])

    def strips(self, png: bytes, num_rows: int, shape: tuple[int, ...]) -> list[bytes]:
        sheet, height = Image.open(io.BytesIO(png)), shape[1]
        scale = sheet.height // (num_rows * (height + _GAP) - _GAP)
        tops = [row * (height + _GAP) * scale for row in range(num_rows)]
        return [_png(sheet.crop((0, top, sheet.width, top + height * scale))) for top in tops]

    def mirrored(self, rows: Tensor) -> Tensor:
        return rows.flip(-1)

    def shifted(self, rows: Tensor, offsets: tuple[int, int]) -> Tensor:
        for axis, by in zip((-2, -1), offsets, strict=True):
            size = rows.shape[axis]
            places = (torch.arange(size, device=rows.device) - by).clamp(0, size - 1)
            rows = rows.index_select(axis, places)
        return rows

    def array_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, height, width = shape
        return height, width, channels

    def arrays(self, rows: Tensor) -> np.ndarray:
        return self.to_stored(rows).permute(0, 2, 3, 1).cpu().numpy()

    def picture(self, row: Tensor) -> Image.Image:
        """One image (C, H, W) in [-1, 1] as Pillow has it."""
        pixels = self.to_stored(row).cpu().numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


MEDIUM = ImageMedium()


def grid(images: Tensor, columns: int) -> Tensor:
    """Images (N, C, H, W) laid out row by row -> one image (C, H', W') with white gaps."""
    num, channels, height, width = images.shape
    rows = -(-num // columns)
    sheet = torch.ones(channels, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    for place, image in enumerate(images.detach().cpu()):
        top, left = (place // columns) * (height + _GAP), (place % columns) * (width + _GAP)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def fitted(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """An 8-bit image without transparency -> uint8 of `shape` (C, H, W), C 1 or 3: its centre, cropped to the shape's
    aspect, resized (bicubic, antialiased)."""
    channels, height, width = shape
    converted = image.convert("L" if channels == 1 else "RGB")
    return channels_first(ImageOps.fit(converted, (width, height), Image.Resampling.BICUBIC))


def channels_first(image: Image.Image) -> np.ndarray:
    """A grey or RGB image -> (C, H, W) uint8."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def upright(image: Image.Image) -> Image.Image:
    """An opened image, decoded and turned as its EXIF orientation says. Nothing else of its metadata is read, and what
    cannot be read turns nothing."""
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises of odd metadata whatever its parsing meets
        turn = None
    return image.copy() if turn is None else image.transpose(turn)


def on_white(image: Image.Image) -> Image.Image:
    """An 8-bit image, its transparency composited on white."""
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def eight_bit(image: Image.Image) -> Image.Image:
    """Integer grey of up to 16 bits is taken to span [0, 65535], floating-point grey [0, 1]; Pillow's own conversion
    would clip them at 255. Other modes are 8-bit already. Raises ValueError for values outside that span."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    highest = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= highest):  # false for NaN, too
        raise ValueError(f"grey levels from {values.min():g} to {values.max():g}, expected within 0 to {highest:g}")
    return Image.fromarray(np.rint(values * (255 / highest)).astype(np.uint8))
