"""The one convention of images: NCHW float in [-1, 1] inside, uint8 outside."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from components.data.images import encode_png, from_uint8, grid, to_pil, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_every_level_survives_the_round_trip():
    images = from_uint8(LEVELS)
    assert images.dtype == torch.float32
    assert images[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(to_uint8(images), LEVELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay_within_a_level_of_their_own(dtype):
    back = to_uint8(from_uint8(LEVELS).to(dtype)).int()
    assert (back - LEVELS.int()).abs().max() <= (1 if dtype == torch.bfloat16 else 0)


def test_values_are_clamped_and_rounded():
    assert to_uint8(torch.tensor([-9.0, -1.0, -0.999, 0.0, 0.999, 1.0, 9.0])).tolist() == [0, 0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("scale", [1, 3])
def test_png_holds_the_pixels(channels, mode, scale):
    pixels = torch.randint(0, 256, (channels, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.open(io.BytesIO(encode_png(from_uint8(pixels), scale)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (4 * scale, 5 * scale))
    found = np.asarray(picture).reshape(5 * scale, 4 * scale, channels)
    expected = pixels.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(found, expected)


def test_equal_images_are_equal_bytes():
    image = torch.linspace(-1, 1, 48).reshape(3, 4, 4)
    assert encode_png(image) == encode_png(image.clone())
    assert to_pil(image).size == (4, 4)


def test_grid_lays_out_row_by_row_on_white():
    images = torch.arange(5)[:, None, None, None].expand(5, 1, 2, 3) / 10
    sheet = grid(images, columns=3, gap=1)
    assert sheet.shape == (1, 2 * 2 + 1, 3 * 3 + 2)
    for number in range(5):
        top, left = (number // 3) * 3, (number % 3) * 4
        assert (sheet[:, top : top + 2, left : left + 3] == images[number]).all()
    assert (sheet[0, 2] == 1).all()
    assert (sheet[0, :, 3] == 1).all()
    assert (sheet[0, 3:, 8:] == 1).all(), "no sixth image"


def test_grid_of_one_image_is_that_image():
    image = torch.rand(1, 3, 4, 4)
    assert torch.equal(grid(image, columns=1), image[0])
