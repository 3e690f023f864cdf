"""Films as a medium: what is stored comes back, as files of every format too."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import torch
from PIL import Image

from components.data.media import medium
from components.errors import DataError

MEDIUM = medium("video")
SHAPES = [(1, 9, 16, 16), (3, 5, 17, 21)]


def film(shape: tuple[int, ...]) -> torch.Tensor:
    """A bright square on its way over a slope of grey."""
    _, frames, _, width = shape
    row = torch.linspace(-0.8, 0.4, width).expand(shape).clone()
    for frame in range(frames):
        row[:, frame, frame : frame + 5, frame : frame + 5] = 0.9
    return row


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("file_format", MEDIUM.formats)
def test_files_hold_what_was_made(file_format, shape, tmp_path):
    row = film(shape)
    path, stored = tmp_path / f"a.{file_format}", MEDIUM.to_stored(row).numpy()
    path.write_bytes(MEDIUM.encode(row, file_format))
    assert path.read_bytes() == MEDIUM.encode(row, file_format), "equal films are equal files"
    found = MEDIUM.read(path, shape)
    assert found.shape == shape and found.dtype == np.uint8
    misfit = np.abs(found.astype(int) - stored).mean()
    assert misfit < (8 if shape[3] % 2 and file_format != "gif" else 1.5)
    if file_format == "gif":
        assert shape[0] == 3 or np.array_equal(found, stored), "grey is exact"
        assert misfit < 0.5
    with pytest.raises(DataError, match=r"frames at 8 a second, expected 13$"):
        MEDIUM.read(path, (shape[0], 13, *shape[2:]))
    again = MEDIUM.read(path, (shape[0], 1, *shape[2:]))
    assert np.array_equal(again, found[:, :1]), "a still image is a film of one frame"


@pytest.mark.parametrize("file_format", ["mp4", "webm"])
def test_a_file_reads_the_same_each_time(file_format, tmp_path):
    """Of a width that ffmpeg's own conversion of narrow frames to rgba is not sure of."""
    path = tmp_path / f"a.{file_format}"
    path.write_bytes(MEDIUM.encode(film((3, 5, 17, 21)), file_format))
    first = MEDIUM.read(path, (3, 5, 17, 21))
    assert all(np.array_equal(MEDIUM.read(path, first.shape), first) for _ in range(60))


def test_a_coarser_quality_makes_smaller_files():
    row = film(SHAPES[0])
    for file_format in ("mp4", "webm"):
        sizes = [len(MEDIUM.encode(row, file_format, quality)) for quality in (100, 60, 0)]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@pytest.mark.parametrize("rate", [4, 24])
def test_frames_are_taken_by_their_time(rate, tmp_path):
    """Of a file at another rate, what a viewer sees at each eighth of a second."""
    levels = torch.linspace(-1, 1, 3 * rate + 1)
    row = levels[None, :, None, None].expand(1, -1, 16, 16)
    (tmp_path / "a.webm").write_bytes(MEDIUM.at(rate).encode(row, "webm", 100))
    found = MEDIUM.to_floats(torch.from_numpy(MEDIUM.read(tmp_path / "a.webm", (1, 17, 16, 16))))[0, :, 8, 8]
    due = [levels[min(round(frame * rate / 8 - 1e-6), len(levels) - 1)] for frame in range(17)]
    assert torch.allclose(found, torch.stack(due), atol=0.6 / rate)


def test_a_file_says_what_it_was_made_with(tmp_path):
    for file_format in ("mp4", "webm"):
        plain = MEDIUM.encode(film(SHAPES[0]), file_format)
        told = MEDIUM.annotated(plain, file_format, {"parameters": "a three, 20 Schritte für Größe"})
        with av.open(io.BytesIO(told)) as opened:
            notes = {name.lower(): text for name, text in opened.metadata.items()}
        assert notes["comment"] == "a three, 20 Schritte für Größe"
        (tmp_path / "a").write_bytes(told)
        (tmp_path / "b").write_bytes(plain)
        assert np.array_equal(MEDIUM.read(tmp_path / "a", SHAPES[0]), MEDIUM.read(tmp_path / "b", SHAPES[0]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"nothing", "not a video that FFmpeg reads"),
        (b"", "not a video that FFmpeg reads"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "not a video that"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(99), "not a video that FFmpeg reads"),
    ],
)
def test_what_is_no_video_is_refused(content, told, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=told):
        MEDIUM.read(tmp_path / "a.mp4", (1, 1, 8, 8))
    with pytest.raises(DataError, match="No such file"):
        MEDIUM.read(tmp_path / "b.mp4", (1, 1, 8, 8))


def test_shapes_that_no_film_has():
    for shape in ((1, 9, 16), (2, 9, 16, 16), (1, 8, 16, 16)):
        with pytest.raises(DataError, match="^here: expected videos of 1 or 3 channels, 1, 5, 9, ... frames, height"):
            MEDIUM.refuse_unfit(shape, "here")
    MEDIUM.refuse_unfit((1, 1, 16, 16), "here")
    assert MEDIUM.size((1, 9, 16, 24)) == "24x16"


def test_previews_are_strips_and_clips_loop():
    rows = torch.stack([film(SHAPES[0])] * 4)
    sheet = Image.open(io.BytesIO(MEDIUM.preview(rows, 2, scale=2)))
    assert sheet.size == (2 * (2 * 5 * 16 + 1), 2 * (2 * 16 + 1))
    assert len(MEDIUM.strips(MEDIUM.preview(rows, 2, 3), 2, SHAPES[0])) == 2
    assert Image.open(io.BytesIO(MEDIUM.preview(rows[:, :, :1], 4))).size == (4 * 17 - 1, 16)
    for mime, data in MEDIUM.playable(rows[:2]):
        clip = Image.open(io.BytesIO(data))
        assert mime == "image/gif" and clip.n_frames == 9 and clip.info["loop"] == 0


def test_frames_are_mirrored_moved_and_resized_alike():
    row = film(SHAPES[0])
    assert torch.equal(MEDIUM.mirrored(row[None])[0, :, 3], row[:, 3].flip(-1))
    assert torch.equal(MEDIUM.shifted(row[None], (0, 2))[0, :, 3, :, 2:], row[:, 3, :, :-2])
    assert MEDIUM.resized(row, "32x24").shape == (1, 9, 24, 32)
    assert MEDIUM.arrays(row[None]).shape == (1, *MEDIUM.array_shape(SHAPES[0])) == (1, 9, 16, 16, 1)
