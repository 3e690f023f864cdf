"""What an image is, everywhere in this project: NCHW float32 in [-1, 1], one channel (grey) or three (RGB).

On disk and on the wire it is uint8 in [0, 255]. A generated image is never smoothed or enlarged except for display.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1] (clamped) -> uint8 in [0, 255], rounded to the nearest level."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """One image (C, H, W) in [-1, 1]."""
    pixels = to_uint8(image).cpu().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def encode_png(image: Tensor, scale: int = 1) -> bytes:
    """PNG bytes of one image (C, H, W); `scale` repeats pixels, for display."""
    buffer = io.BytesIO()
    picture = to_pil(image)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def encode(image: Tensor, file_format: str = "png", quality: int = 90) -> bytes:
    """One image (C, H, W) as a `png`, `jpeg` or `webp` file. `quality` in [0, 100] is ignored by png."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, file_format, **({} if file_format == "png" else {"quality": quality}))
    return buffer.getvalue()


def grid(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Images (N, C, H, W) laid out row by row -> one image (C, H', W') with white gaps."""
    num, channels, height, width = images.shape
    rows = -(-num // columns)
    sheet = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for place, image in enumerate(images.detach().cpu()):
        top, left = (place // columns) * (height + gap), (place % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
