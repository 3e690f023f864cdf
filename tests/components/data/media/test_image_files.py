import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.data.media.image import MEDIUM, fitted
from components.errors import DataError
from tests.components.sources.helpers import picture


class TestLoadImage:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "tga", "jp2", "ico", "avif"])
    def test_formats(self, tmp_path, suffix):
        path = picture(tmp_path / f"a.{suffix}", (200, 100, 50), (32, 32), "RGB")
        pixels = MEDIUM.read(path, (3, 16, 16))
        assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
        assert np.abs(pixels.mean(axis=(1, 2)) - (200, 100, 50)).max() < 4

    @pytest.mark.parametrize(
        ("mode", "value", "expected"),
        [
            ("1", 1, (255, 255, 255)),
            ("LA", (0, 0), (255, 255, 255)),
            ("LA", (40, 255), (40, 40, 40)),
            ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
            ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
            ("I;16", 65535, (255, 255, 255)),
            ("I;16", 128 * 257, (128, 128, 128)),
            ("I", 30000, (117, 117, 117)),
            ("F", 0.5, (128, 128, 128)),
        ],
    )
    def test_modes(self, tmp_path, mode, value, expected):
        path = picture(tmp_path / "a.tif", value, mode=mode)
        assert np.abs(MEDIUM.read(path, (3, 8, 8))[:, 4, 4].astype(int) - expected).max() <= 1
        grey = Image.new("RGB", (1, 1), expected).convert("L").getpixel((0, 0))
        assert abs(int(MEDIUM.read(path, (1, 8, 8))[0, 4, 4]) - grey) <= 1

    def test_sixteen_bit_png_and_big_endian_pgm(self, tmp_path):
        ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
        Image.fromarray(ramp).save(tmp_path / "a.png")
        (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + ramp.astype(">u2").tobytes())
        for name in ("a.png", "a.pgm"):
            assert np.array_equal(MEDIUM.read(tmp_path / name, (1, 8, 8))[0], np.rint(ramp / 257).astype(np.uint8))

    @pytest.mark.parametrize(("mode", "value"), [("I", 70000), ("I", -1), ("F", 1.5), ("F", float("nan"))])
    def test_levels_of_unknown_span_are_refused(self, tmp_path, mode, value):
        path = picture(tmp_path / "a.tif", value, mode=mode)
        with pytest.raises(DataError, match="grey levels"):
            MEDIUM.read(path, (1, 8, 8))

    def test_a_palette_with_a_transparent_entry_lies_on_white(self, tmp_path):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        image.putpixel((0, 0), 2)
        image.save(tmp_path / "a.png", transparency=1)
        pixels = MEDIUM.read(tmp_path / "a.png", (3, 8, 8))
        assert pixels[:, 0, 0].tolist() == [0, 0, 255] and pixels[:, 7, 7].tolist() == [255, 255, 255]

    def test_exif_orientation_is_applied(self, tmp_path):
        image = Image.new("L", (16, 16), 0)
        image.paste(255, (0, 0, 16, 8))  # the stored upper half is bright
        exif = Image.Exif()
        exif[0x0112] = 6  # EXIF: to be shown rotated by 90 degrees clockwise
        image.save(tmp_path / "a.png", exif=exif)
        pixels = MEDIUM.read(tmp_path / "a.png", (1, 16, 16))[0]
        assert pixels[:, 12:].min() == 255 and pixels[:, :4].max() == 0

    def test_the_first_frame_of_an_animation_counts(self, tmp_path):
        frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
        for suffix in ("gif", "png", "webp"):
            frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
            assert MEDIUM.read(tmp_path / f"a.{suffix}", (1, 8, 8)).max() <= 12

    @settings(max_examples=25, deadline=None)
    @given(width=st.integers(1, 60), height=st.integers(1, 60), axis=st.sampled_from([0, 1]))
    def test_any_shape_becomes_a_square_about_its_centre(self, width, height, axis):
        pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width), np.uint8)
        straight = fitted(Image.fromarray(pixels), (1, 8, 8))[0]
        mirrored = fitted(Image.fromarray(np.ascontiguousarray(np.flip(pixels, axis))), (1, 8, 8))[0]
        assert straight.shape == (8, 8)
        assert np.abs(np.flip(mirrored, axis).astype(int) - straight).max() <= 1  # a crop off the centre would differ

    @settings(max_examples=25, deadline=None)
    @given(width=st.integers(1, 60), height=st.integers(1, 60), axis=st.sampled_from([0, 1]))
    def test_any_shape_becomes_a_rectangle_about_its_centre(self, width, height, axis):
        pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width), np.uint8)
        straight = fitted(Image.fromarray(pixels), (1, 8, 12))[0]
        mirrored = fitted(Image.fromarray(np.ascontiguousarray(np.flip(pixels, axis))), (1, 8, 12))[0]
        assert straight.shape == (8, 12)
        assert np.abs(np.flip(mirrored, axis).astype(int) - straight).max() <= 1

    def test_a_rectangle_keeps_the_aspect_of_what_it_shows(self):
        image = Image.new("L", (60, 60), 0)
        image.paste(255, (0, 15, 60, 45))  # a band of twice its height
        assert fitted(image, (1, 8, 16))[:, 1:-1].min() == 255
        assert MEDIUM.size((1, 8, 16)) == "16x8"

    @pytest.mark.parametrize("size", [(80, 20), (20, 80)])
    def test_the_longer_side_is_cropped_not_squeezed(self, size):
        image = Image.new("L", size, 0)
        centre = 25 if size[0] > size[1] else 0
        image.paste(255, (centre, 25 - centre, size[0] - centre, size[1] - 25 + centre))
        assert fitted(image, (1, 8, 8)).min() == 255

    def test_a_square_of_the_right_size_is_left_as_it_is(self):
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
        assert np.array_equal(fitted(Image.fromarray(pixels), (3, 16, 16)), np.moveaxis(pixels, -1, 0))
