"""Films: (C, T, H, W), one channel (grey) or three (RGB), uint8 in [0, 255], at `rate` frames a second in files.

Files are read and written by PyAV, which is FFmpeg's libraries. A row's number of frames is 1 + FACTOR * k, so that an
autoencoder that halves the time twice can keep the first frame apart; a still image is a film of one frame.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from av.filter import Graph
from PIL import Image
from torch import Tensor
from torch.nn import functional

from components.data.media.base import Medium, Playable
from components.data.media.image import MEDIUM as IMAGES
from components.data.media.image import fitted, on_white
from components.errors import DataError
from components.shapes import shape_text

RATE = 8.0  # frames a second, unless a set says another
FACTOR = 4  # frames that come with each latent frame after the first
SHOWN = 5  # frames of a film strip
# no format whose files may name others, as playlists do
_READ = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,gif,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
_CODECS = {"mp4": "libx264", "webm": "libvpx-vp9"}
_COARSEST = {"mp4": 51, "webm": 63}  # the encoders' scales of constant quality, on which 0 is lossless
_NOTE = "comment"  # the one text of a file that players show


class VideoMedium(Medium):
    name, plural, column = "video", "videos", "video"
    dtype, value_range = "uint8", (0, 255)
    formats = {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif"}
    libraries = ("av", "pillow")

    def __init__(self, rate: float = RATE):
        self.rate = rate

    def at(self, rate: float) -> VideoMedium:
        return VideoMedium(rate)

    def configured(self, data: Mapping[str, Any]) -> tuple[tuple[int, ...], float]:
        (channels, *sides), frames = IMAGES.configured(data)[0], data["frames"]
        if frames % FACTOR != 1:
            raise DataError(f"data.frames: expected 1, 5, 9, ... frames, found {frames}")
        return (channels, frames, *sides), float(data["frame_rate"])

    def to_floats(self, stored: Tensor) -> Tensor:
        return IMAGES.to_floats(stored)

    def to_stored(self, values: Tensor) -> Tensor:
        return IMAGES.to_stored(values)

    def refuse_unfit(self, shape: tuple[int, ...], where: str) -> None:
        if len(shape) != 4 or shape[0] not in (1, 3) or shape[1] % FACTOR != 1:
            raise DataError(
                f"{where}: expected videos of 1 or 3 channels, 1, 5, 9, ... frames, height, width; found "
                f"{shape_text(shape)}"
            )

    def size(self, shape: tuple[int, ...]) -> str:
        return IMAGES.size((shape[0], *shape[2:]))

    def read(self, file: Path | BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
        """The frames nearest to 0, 1 / rate, 2 / rate, ... seconds from the first, each upright, on white and brought
        to the shape's sides as an image is."""
        return self.data_row(file, shape)[0]

    def data_row(self, file: Path | BinaryIO, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
        """Likewise, of a film that is long enough; a longer one is cut."""
        channels, count, *sides = shape
        try:
            opened_file = file.open("rb") if isinstance(file, Path) else file
        except OSError as error:
            raise DataError(error.strerror or str(error)) from None
        with opened_file:
            try:
                with av.open(opened_file, options={"format_whitelist": _READ}, metadata_errors="ignore") as opened:
                    taken = _at_rate(opened, count, Fraction(self.rate))
                    frames = [fitted(_upright(frame), (channels, *sides)) for frame in taken]
                    seconds = (opened.duration or 0) / av.time_base
            except Exception as error:  # what comes of damaged files is of many kinds
                reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                raise DataError(f"not a video that FFmpeg reads ({reason})") from None
        if len(frames) < count:
            raise DataError(f"{len(frames)} frames at {self.rate:g} a second, expected {count}")
        return np.stack(frames, axis=1), seconds

    def encode(self, row: Tensor, file_format: str, quality: int = 90) -> bytes:
        """A GIF of grey frames is exact; the others lose as much as `quality` says."""
        pixels, rate = self.to_stored(row).cpu().numpy(), Fraction(self.rate).limit_denominator(1000)
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=file_format, options={"fflags": "+bitexact"}) as container:
            if file_format == "gif":
                _write_gif(container, pixels, rate)
            else:
                _write_coded(container, pixels, rate, _CODECS[file_format], _rate_factor(file_format, quality))
        return buffer.getvalue()

    def annotated(self, data: bytes, file_format: str, notes: Mapping[str, str]) -> bytes:
        """The first text as the file's comment; a GIF has no place for one."""
        if file_format == "gif" or not notes:
            return data
        buffer = io.BytesIO()
        options = {"fflags": "+bitexact"}
        with av.open(io.BytesIO(data)) as given, av.open(buffer, "w", format=file_format, options=options) as made:
            made.metadata[_NOTE] = next(iter(notes.values()))
            stream = made.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    made.mux(packet)
        return buffer.getvalue()

    def resized(self, row: Tensor, size: str) -> Tensor:
        """Each frame, bicubic, antialiased."""
        width, height = map(int, size.split("x"))
        scaled = functional.interpolate(row.movedim(1, 0).float(), (height, width), mode="bicubic", antialias=True)
        return scaled.clamp(-1, 1).movedim(0, 1)

    def preview(self, rows: Tensor, columns: int, scale: int = 1) -> bytes:
        """Each row a film strip: up to SHOWN frames, evenly spread, the first and the last among them."""
        shown = rows[:, :, _shown(rows.shape[2])]
        return IMAGES.preview(torch.cat(shown.unbind(2), dim=-1), columns, scale)

    def preview_scale(self, shape: tuple[int, ...], least: int) -> int:
        return max(1, 2 * least // (3 * shape[-1]))  # a frame of a strip may be smaller than an image alone

    def strips(self, png: bytes, num_rows: int, shape: tuple[int, ...]) -> list[bytes]:
        channels, frames, height, width = shape
        return IMAGES.strips(png, num_rows, (channels, height, len(_shown(frames)) * width))

    def playable(self, rows: Tensor) -> list[Playable]:
        """Looping GIFs, which need no player."""
        return [Playable(self.formats["gif"], self.encode(row, "gif")) for row in rows]

    def mirrored(self, rows: Tensor) -> Tensor:
        return IMAGES.mirrored(rows)

    def shifted(self, rows: Tensor, offsets: tuple[int, int]) -> Tensor:
        return IMAGES.shifted(rows, offsets)

    def array_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, *rest = shape
        return *rest, channels

    def arrays(self, rows: Tensor) -> np.ndarray:
        return self.to_stored(rows).movedim(1, -1).cpu().numpy()


MEDIUM = VideoMedium()


def _shown(count: int) -> list[int]:
    """The numbers of the frames of a strip."""
    num = min(count, SHOWN)
    return [round(place * (count - 1) / max(1, num - 1)) for place in range(num)]


def _at_rate(opened: Any, count: int, rate: Fraction) -> Iterator[av.VideoFrame]:
    """Up to `count` frames of an opened file, each the one nearest to its time."""
    first = last = None
    wanted = 0
    for frame in opened.decode(video=0):
        at = Fraction(0) if frame.pts is None else frame.pts * frame.time_base
        first = at if first is None else first
        at -= first
        while wanted < count and last is not None and at + last[0] >= 2 * wanted / rate:
            yield last[1]
            wanted += 1
        if wanted == count:
            return
        last = at, frame
    while wanted < count and last is not None and wanted / rate - last[0] < 1 / (2 * rate):
        yield last[1]
        wanted += 1


def _upright(frame: av.VideoFrame) -> Image.Image:
    """A decoded frame, turned as its file says, transparency composited on white."""
    # ffmpeg's conversion of narrow opaque frames to rgba differs from time to time, that to rgb24 does not
    is_opaque = not (frame.format.has_palette or any(one.is_alpha for one in frame.format.components))
    image = on_white(Image.fromarray(frame.to_ndarray(format="rgb24" if is_opaque else "rgba")))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _rate_factor(file_format: str, quality: int) -> int:
    """An encoder's constant quality of ours: 1, the best that loses something, at 100."""
    return max(1, math.ceil((100 - quality) / 100 * _COARSEST[file_format]))


def _write_coded(container: Any, pixels: np.ndarray, rate: Fraction, codec: str, rate_factor: int) -> None:
    """Frames in the colour format that every player knows, of even sides: odd ones get their last line twice."""
    _, _, height, width = pixels.shape
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    stream = container.add_stream(codec, rate=rate, options={"crf": str(rate_factor), "threads": "1"})
    stream.pix_fmt, stream.bit_rate = "yuv420p", 0
    stream.height, stream.width = pixels.shape[2:]
    for frame in _frames(pixels, rate, "rgb24"):
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _write_gif(container: Any, pixels: np.ndarray, rate: Fraction) -> None:
    """Grey as it is; of colours the 256 that fit all frames best."""
    stream = container.add_stream("gif", rate=rate)
    stream.height, stream.width = pixels.shape[2:]
    is_grey = pixels.shape[0] == 1
    stream.pix_fmt = "gray" if is_grey else "pal8"
    frames = _frames(pixels, rate, "gray" if is_grey else "rgb24")
    for frame in frames if is_grey else _in_palette(stream, frames, rate):
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _frames(pixels: np.ndarray, rate: Fraction, layout: str) -> Iterator[av.VideoFrame]:
    """(C, T, H, W) uint8 as PyAV has frames."""
    for number, picture in enumerate(np.moveaxis(pixels, 0, -1)):  # (H, W, C)
        values = picture[..., 0] if layout == "gray" else np.broadcast_to(picture, (*picture.shape[:2], 3))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format=layout)
        frame.pts, frame.time_base = number, 1 / rate
        yield frame


def _in_palette(stream: Any, frames: Iterator[av.VideoFrame], rate: Fraction) -> Iterator[av.VideoFrame]:
    """Frames in one palette of theirs, through FFmpeg's filters of that purpose."""
    graph = Graph()
    source = graph.add_buffer(width=stream.width, height=stream.height, format="rgb24", time_base=1 / rate)
    split, collect, use, sink = (
        graph.add("split"),
        graph.add("palettegen", "reserve_transparent=0"),
        graph.add("paletteuse", "dither=none"),
        graph.add("buffersink"),
    )
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(collect, 1, 0)
    collect.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for frame in frames:
        source.push(frame)
    source.push(None)
    while True:
        try:
            yield sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
