"""Images: floats in [-1, 1] inside, uint8 outside; files, previews, the registry of media."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from components.data.media import Medium, medium, medium_names
from components.data.media.image import MEDIUM, grid
from components.errors import DataError
from tests import toys

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_every_level_survives_the_round_trip():
    images = MEDIUM.to_floats(LEVELS)
    assert images.dtype == torch.float32
    assert images[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(MEDIUM.to_stored(images), LEVELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay_within_a_level_of_their_own(dtype):
    back = MEDIUM.to_stored(MEDIUM.to_floats(LEVELS).to(dtype)).int()
    assert (back - LEVELS.int()).abs().max() <= (1 if dtype == torch.bfloat16 else 0)


def test_values_are_clamped_and_rounded():
    assert MEDIUM.to_stored(torch.tensor([-9.0, -1.0, -0.999, 0.0, 0.999, 1.0, 9.0])).tolist() == [
        0,
        0,
        0,
        128,
        255,
        255,
        255,
    ]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("scale", [1, 3])
def test_png_holds_the_pixels(channels, mode, scale):
    pixels = torch.randint(0, 256, (channels, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.open(io.BytesIO(MEDIUM.preview(MEDIUM.to_floats(pixels)[None], 1, scale)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (4 * scale, 5 * scale))
    found = np.asarray(picture).reshape(5 * scale, 4 * scale, channels)
    expected = pixels.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(found, expected)


def test_equal_images_are_equal_bytes():
    image = torch.linspace(-1, 1, 48).reshape(3, 4, 4)
    for file_format in MEDIUM.formats:
        assert MEDIUM.encode(image, file_format) == MEDIUM.encode(image.clone(), file_format)
    assert MEDIUM.picture(image).size == (4, 4)


def test_grid_lays_out_row_by_row_on_white():
    images = torch.arange(5)[:, None, None, None].expand(5, 1, 2, 3) / 10
    sheet = grid(images, columns=3)
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


def test_strips_are_the_rows_of_a_preview():
    images = MEDIUM.to_floats(torch.randint(0, 256, (6, 1, 5, 4)))
    found = MEDIUM.strips(MEDIUM.preview(images, 3, scale=3), 2, (1, 5, 4))
    for row, strip in enumerate(found):
        expected = MEDIUM.preview(images[3 * row : 3 * row + 3], 3, scale=3)
        assert Image.open(io.BytesIO(strip)).tobytes() == Image.open(io.BytesIO(expected)).tobytes()


def test_files_hold_the_image_in_the_format_asked():
    image = torch.linspace(-1, 1, 12).reshape(1, 3, 4)
    for file_format, mime in MEDIUM.formats.items():
        opened = Image.open(io.BytesIO(MEDIUM.encode(image, file_format)))
        assert (opened.get_format_mimetype(), opened.size) == (mime, (4, 3))


def test_a_shift_moves_down_and_right_and_draws_edges_out():
    image = torch.arange(6).reshape(1, 1, 2, 3)
    assert MEDIUM.shifted(image, (0, 1)).flatten().tolist() == [0, 0, 1, 3, 3, 4]
    assert MEDIUM.shifted(image, (-1, 0)).flatten().tolist() == [3, 4, 5, 3, 4, 5]
    with pytest.raises(DataError, match="shifts: tokens are not moved"):
        medium("tokens").shifted(image, (0, 1))


def test_arrays_have_channels_last():
    images = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert MEDIUM.arrays(images).shape[1:] == MEDIUM.array_shape((3, 4, 5)) == (4, 5, 3)
    assert np.array_equal(MEDIUM.arrays(images)[..., 1], MEDIUM.to_stored(images)[:, 1].numpy())


def test_the_folder_is_the_registry():
    assert isinstance(medium("image"), Medium) and medium("image") is MEDIUM
    with pytest.raises(
        DataError, match=r"^data/x/manifest.json: medium: expected one of audio, image.*, found 'smell'$"
    ):
        medium("smell", "data/x/manifest.json: medium")


def test_a_file_in_a_folder_of_its_own_is_a_medium():
    own = medium_names()
    with toys.installed():
        assert medium("series").dtype == "int16" and set(medium_names()) == {*own, "clip", "series"}
    assert medium_names() == own and {"image", "tokens", "video"} <= {*own}
    with pytest.raises(DataError, match=f"^medium: expected one of {', '.join(own)}, found 'series'$"):
        medium("series")


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 16), (3, 2, 4, 4)])
def test_shapes_that_no_image_has_are_refused(shape):
    with pytest.raises(DataError, match="^data.x: expected images of 1 or 3 channels"):
        MEDIUM.refuse_unfit(shape, "data.x")
