"""Images that a client sends: decoded within limits, and brought to the size that a sampler works at."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from components.data.media.image import eight_bit, fitted, on_white, upright
from infra.serving.api_error import ApiError
from infra.serving.orders import SourceImage
from infra.serving.served_model import ServedModel

FORMATS = ("PNG", "JPEG", "WEBP")
# SDEdit keeps an image and makes it look like the data between 0.3 and 0.6 (Meng et al. 2022, section 3)
EDIT_STRENGTH, VARIATION_STRENGTH = 0.6, 0.5
REDRAW_STRENGTH = 1.0  # behind a mask nothing of the image is to be kept

T = TypeVar("T")


def open_image(data: bytes, param: str, max_pixels: int) -> Image.Image:
    """The first frame, upright. Raises ApiError if it is no PNG, JPEG or WebP, damaged, or of too many pixels."""
    num_pixels(data, param, max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            return eight_bit(upright(opened))
    except Exception as error:  # what Pillow raises of damaged files is of many kinds
        message = f"{param}: expected a whole PNG, JPEG or WebP image ({type(error).__name__})"
        raise ApiError(400, message, param=param, code="invalid_image") from None


class Decoder:
    """Opens clients' images beside the event loop, one at a time. `most`: pixels of one image; `in_flight`: of all
    that wait to be decoded, as files of a few megabytes, or are being decoded."""

    def __init__(self, most: int, in_flight: int):
        self.most, self.in_flight, self._pixels = most, max(most, in_flight), 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    async def source(
        self, image: bytes, mask: bytes | None, strength: float | None, model: ServedModel, redraws: bool
    ) -> SourceImage:
        """As `source` below. Raises ApiError too while there are too many pixels."""
        pixels = num_pixels(image, "image", self.most) + (num_pixels(mask, "mask", self.most) if mask else 0)
        return await self.run(pixels, functools.partial(source, image, mask, strength, model, self.most, redraws))

    async def run(self, pixels: int, work: Callable[[], T]) -> T:
        """What `work` makes of images of so many pixels, in its turn. Raises ApiError while there are too many."""
        if self._pixels and self._pixels + pixels > self.in_flight:
            message = "too many images are being opened at the moment; try again"
            raise ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=1)
        self._pixels += pixels
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._pixels -= pixels


def num_pixels(data: bytes, param: str, max_pixels: int) -> int:
    """As the file's head says, without decoding it; 0 of what is no image. Raises ApiError of too many."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
    except Exception:  # `open_image` says what is wrong with it
        return 0
    if width * height > max_pixels:
        raise ApiError(400, f"{param}: at most {max_pixels} pixels, found {width}x{height}", param=param)
    return width * height


def source(
    image: bytes, mask: bytes | None, strength: float | None, model: ServedModel, max_pixels: int, redraws: bool
) -> SourceImage:
    """What a sampler starts from. `redraws`: whether transparent pixels, of the mask or of the image without a mask,
    are to be redrawn; they are composited on white otherwise. The centre of the model's aspect is cropped
    and resized.

    Raises ApiError if the model edits nothing, or of files that cannot be used.
    """
    if not {"source", "image"} & set(model.accepts):
        raise ApiError(400, f"image: {model.id} draws from noise alone and cannot start from an image", param="image")
    if "source" not in model.accepts and mask is not None:
        raise ApiError(400, f"mask: {model.id} shows images anew and keeps no part of one", param="mask")
    opened = open_image(image, "image", max_pixels)
    sides = model.row_shape[1:]
    redrawn = b""
    if mask is not None:
        redrawn = _redrawn(_mask(mask, opened.size, max_pixels), sides)
    elif redraws and "source" in model.accepts and opened.has_transparency_data and (_alpha(opened) == 0).any():
        redrawn = _redrawn(opened, sides)
    usual = REDRAW_STRENGTH if redrawn else EDIT_STRENGTH if redraws else VARIATION_STRENGTH
    pixels = fitted(on_white(opened), model.row_shape).tobytes()
    return SourceImage(pixels=pixels, strength=strength or usual, mask=redrawn)


def _mask(data: bytes, size: tuple[int, int], max_pixels: int) -> Image.Image:
    opened = open_image(data, "mask", max_pixels)
    if opened.size != size:
        (width, height), (found_width, found_height) = size, opened.size
        message = f"mask: expected {width}x{height} like the image, found {found_width}x{found_height}"
        raise ApiError(400, message, param="mask")
    if not opened.has_transparency_data:
        raise ApiError(400, "mask: expected an alpha channel, whose transparent pixels are redrawn", param="mask")
    return opened


def _alpha(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _redrawn(image: Image.Image, sides: tuple[int, int]) -> bytes:
    """`sides`: height and width. A byte a pixel: the share of it that is wholly transparent, 255 for all."""
    transparent = Image.fromarray(np.where(_alpha(image) == 0, 255, 0).astype(np.uint8))
    return ImageOps.fit(transparent, sides[::-1], Image.Resampling.BOX).tobytes()
