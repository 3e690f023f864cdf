"""Tokens as a medium: what is stored comes back, as a file too."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from components.data.media import medium
from components.errors import DataError

MEDIUM = medium("tokens")


def test_every_token_survives_the_round_trip():
    stored = torch.from_numpy(np.arange(65536, dtype=np.uint16))
    assert torch.equal(MEDIUM.to_stored(MEDIUM.to_floats(stored)).int(), stored.int())


def test_files_are_arrays(tmp_path):
    row = torch.from_numpy(np.array([[[0, 7], [512, 65535]]], dtype=np.uint16))
    content = MEDIUM.encode(MEDIUM.to_floats(row), "npy")
    (tmp_path / "a.npy").write_bytes(content)
    assert np.array_equal(MEDIUM.read(tmp_path / "a.npy", (1, 2, 2)), row.numpy())
    with pytest.raises(DataError):
        MEDIUM.read(tmp_path / "a.npy", (1, 3, 2))
    (tmp_path / "b.npy").write_bytes(b"nothing")
    with pytest.raises(DataError):
        MEDIUM.read(tmp_path / "b.npy", (1, 2, 2))
    MEDIUM.refuse_unfit((1, 4, 4), "here")
    with pytest.raises(DataError, match="^here: expected tokens of one channel on a grid; found 2x4x4"):
        MEDIUM.refuse_unfit((2, 4, 4), "here")


def test_a_preview_shows_grids():
    rows = MEDIUM.to_floats(torch.from_numpy(np.arange(32, dtype=np.uint16).reshape(2, 1, 4, 4)))
    picture = MEDIUM.preview(rows, columns=2, scale=3)
    assert Image.open(io.BytesIO(picture)).size == (27, 12)
    assert len(MEDIUM.strips(MEDIUM.preview(rows, 1), 2, (1, 4, 4))) == 2
