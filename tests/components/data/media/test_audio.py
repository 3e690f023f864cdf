from __future__ import annotations

import io
import math
import wave

import av
import numpy as np
import pytest
import torch
from PIL import Image

from components import spectra
from components.data.media import medium
from components.data.media.audio import MOST, lengths, mask, samples
from components.errors import DataError

RATE = 8000
MEDIUM = medium("audio", rate=RATE)
SHAPE = (1, 2048)


def tone(hertz: float, count: int = 2048, rate: int = RATE, peak: float = 0.5) -> torch.Tensor:
    return peak * torch.sin(2 * math.pi * hertz * torch.arange(count) / rate)[None, None]


def write_wav(path, values: np.ndarray, rate: int, channels: int = 1, width: int = 2) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(values.tobytes())


def test_a_wav_of_the_same_rate_is_read_exactly_and_filled_or_cut(tmp_path):
    values = np.array([3, -MOST - 1, 7, 0, 9], np.int16)
    write_wav(tmp_path / "a.wav", values, RATE)
    row = MEDIUM.read(tmp_path / "a.wav", (1, 8))
    assert row.dtype == np.int16 and row.tolist() == [[3, -MOST, 7, 0, 9, 0, 0, 0]]
    assert MEDIUM.read(tmp_path / "a.wav", (1, 3)).tolist() == [[3, -MOST, 7]]


def test_every_stored_value_survives_the_way_to_floats_and_back():
    stored = torch.arange(-MOST, MOST + 1).to(torch.int16).view(1, 1, -1)
    floats = MEDIUM.to_floats(stored)
    assert torch.equal(MEDIUM.to_stored(floats), stored) and floats.min() == -1 and floats.max() == 1
    assert MEDIUM.to_floats(torch.zeros(1, dtype=torch.int16)) == 0, "silence is silence"


@pytest.mark.parametrize(("file_format", "exact"), [("wav", True), ("flac", True), ("mp3", False), ("opus", False)])
def test_files_hold_the_clip_without_what_fills_its_row(tmp_path, file_format, exact):
    row = torch.cat([MEDIUM.quantised(tone(440, 1500)), torch.zeros(1, 1, 548)], 2)[0]
    data = MEDIUM.encode(row, file_format)
    assert data == MEDIUM.encode(row, file_format), "equal rows give equal files"
    read = MEDIUM.to_floats(torch.from_numpy(samples(io.BytesIO(data), RATE)))
    found = read[: int(lengths(row[None]))]
    if exact:
        assert torch.equal(found, row[0, : len(found)]) and len(read) == int(lengths(row[None]))
    else:
        error = (found - row[0, : len(found)]).square().mean().sqrt()
        assert error < 0.1 * row.square().mean().sqrt(), "a codec with losses"


@pytest.mark.parametrize("rate", [1000, 11000, 20000, 44000])
@pytest.mark.parametrize("file_format", ["wav", "flac", "mp3", "opus"])
def test_every_format_takes_any_rate(rate, file_format):
    odd = medium("audio", rate=rate)
    data = odd.encode(odd.quantised(tone(100, rate, rate))[0], file_format)
    assert abs(len(samples(io.BytesIO(data), rate)) - rate) < 0.1 * rate


def test_tags_of_another_encoding_are_no_fault_of_the_sound(tmp_path):
    values = np.arange(1600, dtype=np.int16)
    write_wav(tmp_path / "a.wav", values, RATE)
    name = "Björk".encode("latin-1") + b"\0"
    tags = b"INFO" + b"INAM" + len(name).to_bytes(4, "little") + name
    data = bytearray((tmp_path / "a.wav").read_bytes() + b"LIST" + len(tags).to_bytes(4, "little") + tags)
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert MEDIUM.read(tmp_path / "a.wav", (1, 1600)).tolist() == [values.tolist()]


def test_another_rate_and_more_channels_are_resampled_and_averaged(tmp_path):
    left = (tone(500, 8192, 4 * RATE)[0, 0] * MOST).round().to(torch.int16).numpy()
    write_wav(tmp_path / "b.wav", np.stack([left, np.zeros_like(left)], 1), 4 * RATE, channels=2)
    row = MEDIUM.to_floats(torch.from_numpy(MEDIUM.read(tmp_path / "b.wav", SHAPE)))[None]
    expected = tone(500) / 2
    assert (row - expected)[:, :, 100:-100].abs().max() < 0.02


def test_a_file_joined_of_others_is_read_as_one(tmp_path):
    """Of two channels and of one, as podcasts with inserted spots are."""
    parts = []
    for channels, layout in ((2, "stereo"), (1, "mono")):
        path = tmp_path / f"{channels}.mp3"
        with av.open(str(path), "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as file:
            stream = file.add_stream("libmp3lame", rate=RATE, layout=layout)
            frame = av.AudioFrame.from_ndarray(np.full((1, channels * RATE), 8000, np.int16), "s16", layout)
            frame.sample_rate = RATE
            file.mux([*stream.encode(frame), *stream.encode(None)])
        parts.append(path.read_bytes())
    (tmp_path / "both.mp3").write_bytes(b"".join(parts))
    assert 2 * RATE <= len(samples(tmp_path / "both.mp3", RATE)) < 2.5 * RATE  # a codec fills its last frames


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no sound at all", "^not a file of sound that FFmpeg reads"), (b"", "^not a file of sound")],
)
def test_what_is_no_sound_is_refused_with_a_reason(tmp_path, content, message):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(DataError, match=message):
        MEDIUM.read(tmp_path / "a.wav", SHAPE)
    write_wav(tmp_path / "b.wav", np.zeros(0, np.int16), RATE)
    with pytest.raises(DataError, match="^holds no samples$"):
        MEDIUM.read(tmp_path / "b.wav", SHAPE)
    with pytest.raises(DataError, match="No such file"):
        MEDIUM.read(tmp_path / "c.wav", SHAPE)


def test_a_row_tells_its_length():
    rows = torch.tensor([[[0.1, 0.0, 0.2, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert lengths(rows).tolist() == [3, 1] and MEDIUM.num_values(rows).tolist() == [3, 1]
    assert mask(rows).tolist() == [[[True, True, True, False]], [[True, False, False, False]]]


def test_a_preview_is_cut_into_the_lines_that_it_was_made_of():
    rows = torch.cat([tone(300), tone(3000), torch.zeros(1, *SHAPE)])
    png = MEDIUM.preview(rows, 2)
    strips = [Image.open(io.BytesIO(strip)) for strip in MEDIUM.strips(png, 2, SHAPE)]
    assert [strip.width for strip in strips] == [Image.open(io.BytesIO(png)).width] * 2
    low, high = np.asarray(strips[0])[24:, :30].mean(1), np.asarray(strips[0])[24:, -30:].mean(1)
    assert low.argmax() > high.argmax(), "low tones lie below high ones"
    assert MEDIUM.size(SHAPE) == "0.256s" and MEDIUM.at(16000).size(SHAPE) == "0.128s"


class TestSpectra:
    def test_waves_come_back_from_their_spectra(self):
        waves = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(spectra.istft(spectra.stft(waves, 64), 64), waves, rtol=0, atol=1e-5)

    def test_a_sine_of_full_scale_has_magnitude_one_at_its_frequency(self):
        found = spectra.stft(tone(1000, peak=1.0)[0], 128).abs()[0, :, 8]
        assert found.argmax() == 1000 / (RATE / 512) and found.max() == pytest.approx(1, abs=1e-3)

    def test_bands_have_weights_of_sum_one_and_rise_with_frequency(self):
        filters = spectra.mel_filters(RATE, 257, 32)
        assert np.allclose(filters.sum(1), 1) and (np.diff(filters.argmax(1)) > 0).all()

    def test_values_go_to_magnitudes_and_back(self):
        magnitudes = torch.tensor([0.0, 1e-3, 0.5, 1.0])
        torch.testing.assert_close(spectra.expanded(spectra.compressed(magnitudes)), magnitudes)

    def test_griffin_lim_finds_a_wave_of_the_magnitudes(self):
        waves = tone(700)[0] + 0.3 * tone(1900)[0]
        wanted = spectra.stft(waves, 128).abs()
        phases = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(0))
        errors = [
            (spectra.stft(spectra.griffin_lim(wanted, 128, steps, phases), 128).abs() - wanted).norm() / wanted.norm()
            for steps in (0, 32)
        ]
        assert errors[1] < 0.15 < 0.3 < errors[0]

    def test_a_row_alone_looks_as_in_a_batch(self):
        rows = torch.cat([tone(300), tone(900), tone(2500)])
        torch.testing.assert_close(MEDIUM.seen(rows[1:2]), MEDIUM.seen(rows)[1:2], rtol=0, atol=1e-6)
        assert MEDIUM.seen(rows).shape == (3, 1, 32, 16)
