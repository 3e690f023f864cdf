"""Photographs that every viewer shows, whose metadata is odd (python-pillow/Pillow#8965 and its kind)."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from components.data.media.image import MEDIUM, upright
from infra.serving.uploads import open_image


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag, kind, count) + value


def tiff(entries: list[bytes], extra: bytes = b"") -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0" + extra


ORIENTATION = entry(0x112, 3, 1, b"\6\0\0\0")
UPRIGHT, AS_STORED = (20, 40), (40, 20)
CASES = {
    "negative rational": (tiff([ORIENTATION, entry(0x11A, 10, 1, struct.pack("<L", 38))], b"\xff" * 4), UPRIGHT),
    "resolution as text": (tiff([ORIENTATION, entry(0x11A, 2, 4, b"72\0\0")]), UPRIGHT),
    "orientation as text": (tiff([entry(0x112, 2, 4, b"up\0\0")]), AS_STORED),
    "orientation out of range": (tiff([entry(0x112, 3, 1, b"\x63\0\0\0")]), AS_STORED),
    "short block": (b"II*\0\x08", AS_STORED),
    "no block": (b"", AS_STORED),
    "noise": (bytes(range(200)), AS_STORED),
}


def photograph(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(AS_STORED).convert("RGB").save(buffer, "JPEG")
    raw, body = buffer.getvalue(), b"Exif\0\0" + exif
    return raw[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + raw[2:]


@pytest.mark.parametrize("case", CASES)
def test_only_the_orientation_is_read(case, tmp_path):
    exif, size = CASES[case]
    (tmp_path / "one.jpg").write_bytes(photograph(exif))
    assert MEDIUM.read(tmp_path / "one.jpg", (3, 8, 8)).shape == (3, 8, 8)
    assert open_image(photograph(exif), "image", 10_000).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_turns_as_pillow_does(orientation):
    from PIL import ImageOps

    opened = Image.open(io.BytesIO(photograph(tiff([entry(0x112, 3, 1, bytes([orientation, 0, 0, 0]))]))))
    assert np.array_equal(np.asarray(upright(opened)), np.asarray(ImageOps.exif_transpose(opened)))
