"""Sound: (1, L) int16 in [-32767, 32767], one channel of a fixed length; what a clip falls short of it is zeros.

Silence of exact zeros at the end is no part of a clip: a row says its own length, whether it was read or generated, and
`mask` which of its values are the clip's. Files are read and written by PyAV, in whatever rate, width and channels.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.error import FFmpegError
from torch import Tensor

from components import spectra
from components.data.media.base import Medium, Playable
from components.data.media.image import MEDIUM as IMAGES
from components.errors import DataError
from components.shapes import shape_text

MOST = 32767
RATE = 16000.0  # where nobody says
_READ = "wav,w64,aiff,au,flac,ogg,mp3,aac,mov,matroska,webm"  # no format whose files may name others, as playlists do
_CODECS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "opus": "libopus"}
_CONTAINERS = {"opus": "ogg"}
_RATES = {  # of codecs that know no others
    "opus": (8000, 12000, 16000, 24000, 48000),
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
_LEAST = 0.02  # seconds of sound that a clip has: a period of the lowest tones
_CURVE = 24  # pixels of a preview's wave, above the spectrum
_FRAME = 2  # pixels that a frame of the spectrum is wide


class AudioMedium(Medium):
    name, plural, column = "audio", "clips", "audio"
    dtype, value_range = "int16", (-MOST, MOST)
    formats = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "opus": "audio/ogg"}
    libraries = ("av",)

    def __init__(self, rate: float = RATE):
        self.rate = rate

    def at(self, rate: float) -> AudioMedium:
        return AudioMedium(rate)

    def configured(self, data: Mapping[str, Any]) -> tuple[tuple[int, ...], float]:
        return (1, round(data["seconds"] * data["sample_rate"])), float(data["sample_rate"])

    def to_floats(self, stored: Tensor) -> Tensor:
        return (stored.float() / MOST).clamp(min=-1)

    def to_stored(self, values: Tensor) -> Tensor:
        return (values.float().clamp(-1, 1) * MOST).round().to(torch.int16)

    def refuse_unfit(self, shape: tuple[int, ...], where: str) -> None:
        if len(shape) != 2 or shape[0] != 1:
            raise DataError(f"{where}: expected sound of one channel and a length, found {shape_text(shape)}")

    def size(self, shape: tuple[int, ...]) -> str:
        return f"{shape[1] / self.rate:g}s"

    def read(self, file: Path | BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
        """The first stream of sound, its channels averaged, resampled; cut or filled with zeros at its end."""
        return fitted(samples(file, self.rate), shape)

    def data_row(self, file: Path | BinaryIO, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
        """Likewise. Raises DataError of a clip that is silent, or whose sound is too short to be heard as one."""
        found = samples(file, self.rate)
        seconds, kept = len(found) / self.rate, shape[1] / self.rate
        if not found.any():
            raise DataError("is silent; its channels are averaged into one")
        row = fitted(found, shape)
        if not row.any():
            raise DataError(f"is silent in its first {kept:g} s, which a row keeps of {seconds:.3g} s")
        heard = int(lengths(torch.from_numpy(row)[None])) / self.rate
        if heard < min(_LEAST, kept):
            raise DataError(f"has {1000 * heard:.3g} ms of sound, expected at least {1000 * _LEAST:g} ms")
        return row, seconds

    def encode(self, row: Tensor, file_format: str, quality: int = 90) -> bytes:
        """The clip without the zeros that fill its row. `quality` of mp3 and opus: 100 is 128 kbit/s a channel."""
        stored = self.to_stored(row).cpu()
        return encoded(stored[:, : int(lengths(stored[None]))].numpy(), file_format, round(self.rate), quality)

    def seen(self, rows: Tensor) -> Tensor:
        """The logarithm of their mel spectra, (B, 1, bands, frames), as if all were equally loud: of 32 bands, with a
        frame each 16 ms or so."""
        hop = spectra.usual_hop(self.rate)
        return spectra.log_mel(_whole_hops(_as_loud(rows)[:, 0], hop), self.rate, hop)[:, None]

    def num_values(self, rows: Tensor) -> Tensor:
        return lengths(rows)

    def preview(self, rows: Tensor, columns: int, scale: int = 1) -> bytes:
        """Each row's wave above its spectrum, low tones below and loud ones light, as if all were equally
        loud."""
        rows = rows.detach().cpu().float()
        tones = self.seen(rows).flip(2).repeat_interleave(_FRAME, 3)
        return IMAGES.preview(torch.cat([_curves(_as_loud(rows)[:, 0], tones.shape[3]), tones], dim=2), columns, scale)

    def preview_scale(self, shape: tuple[int, ...], least: int) -> int:
        return max(1, least // self._picture(shape)[-1])

    def strips(self, png: bytes, num_rows: int, shape: tuple[int, ...]) -> list[bytes]:
        return IMAGES.strips(png, num_rows, self._picture(shape))

    def playable(self, rows: Tensor) -> list[Playable]:
        return [Playable(self.formats["wav"], self.encode(row, "wav")) for row in rows]

    def _picture(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape of one row's preview."""
        channels, height, width = self.seen(torch.zeros(1, *shape)).shape[1:]
        return channels, _CURVE + height, _FRAME * width


MEDIUM = AudioMedium()


def lengths(rows: Tensor) -> Tensor:
    """(B,) int64, samples of rows (B, 1, L) up to the last that is not zero; 1 at least."""
    places = torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    return ((rows != 0).flatten(1) * places).amax(1).clamp(min=1)


def mask(rows: Tensor) -> Tensor:
    """(B, 1, L) bool: which values of rows (B, 1, L) are the clip's, rather than what fills the row."""
    return (torch.arange(rows.shape[-1], device=rows.device) < lengths(rows)[:, None])[:, None]


def fitted(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """int16 samples (n,) as a stored row of `shape`: cut or filled with zeros at the end."""
    row = np.zeros(shape, np.int16)
    kept = values[: shape[1]]
    row[0, : len(kept)] = np.maximum(kept, -MOST)
    return row


def samples(file: Path | BinaryIO, rate: float) -> np.ndarray:
    """The first stream of sound of a file, one channel, at `rate`: int16 (n,). Raises DataError with the reason."""
    try:
        named = str(file) if isinstance(file, Path) else file
        with av.open(named, options={"format_whitelist": _READ}, metadata_errors="ignore") as opened:
            if not opened.streams.audio:
                raise DataError("holds no sound")
            parts = [part.to_ndarray()[0] for part in _resampled(opened.decode(audio=0), round(rate))]
    except FFmpegError as error:
        raise DataError(f"not a file of sound that FFmpeg reads ({error.strerror or error})") from None
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None
    if not sum(map(len, parts)):
        raise DataError("holds no samples")
    return np.concatenate(parts)


def _resampled(frames: Iterable[av.AudioFrame], rate: int) -> Iterator[av.AudioFrame]:
    """Frames as one channel of int16 at `rate`. What they are may change within a file that was joined of others."""
    resampler, written = None, None
    for frame in frames:
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if found != written:
            yield from resampler.resample(None) if resampler else ()
            resampler, written = av.AudioResampler(format="s16", layout="mono", rate=rate), found
        yield from resampler.resample(frame)
    yield from resampler.resample(None) if resampler else ()


def encoded(values: np.ndarray, file_format: str, rate: int, quality: int = 90) -> bytes:
    """int16 samples (1, n) as a file of one of the medium's formats."""
    buffer = io.BytesIO()
    with av.open(
        buffer, "w", format=_CONTAINERS.get(file_format, file_format), options={"fflags": "+bitexact"}
    ) as file:
        target = min((one for one in _RATES.get(file_format, (rate,)) if one >= rate), default=48000)
        stream = file.add_stream(_CODECS[file_format], rate=target, layout="mono")
        if file_format in ("mp3", "opus"):
            stream.bit_rate = max(8, round(1.28 * quality)) * 1000
        for packet in _packets(stream, values, rate):
            file.mux(packet)
    return buffer.getvalue()


def _packets(stream: av.AudioStream, values: np.ndarray, rate: int) -> Iterator[av.Packet]:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), format="s16", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format=stream.format, layout="mono", rate=stream.rate, frame_size=stream.frame_size)
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        yield from stream.encode(part)
    yield from stream.encode(None)


def _as_loud(rows: Tensor) -> Tensor:
    """Rows (B, C, L) of a peak of 1."""
    return rows / rows.abs().amax((1, 2), keepdim=True).clamp(min=1 / MOST)


def _whole_hops(waves: Tensor, hop: int) -> Tensor:
    return F.pad(waves, (0, -waves.shape[1] % hop))


def _curves(waves: Tensor, width: int) -> Tensor:
    """Waves (B, L) drawn black on white, (B, 1, _CURVE, width): each column from its lowest value to its highest."""
    columns = F.pad(waves, (0, -waves.shape[1] % width)).unflatten(1, (width, -1))
    low, high = columns.amin(2), columns.amax(2)
    heights = torch.linspace(1, -1, _CURVE)[:, None]
    half = 1 / (_CURVE - 1)
    drawn = (heights >= low[:, None] - half) & (heights <= high[:, None] + half)
    return torch.where(drawn, -1.0, 1.0)[:, None]
