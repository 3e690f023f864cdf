"""Sound as a source: the spoken digits, and folders of one's own clips."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest

from components import sources
from components.data.dataset import Rejected
from components.errors import DataError
from components.sources import DataConfig

WHERE = {"sample_rate": 8000, "seconds": 0.05}


def wav(value: int, count: int = 300) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.full(count, value, np.int16).tobytes())
    return buffer.getvalue()


NAMES = ("7_theo_0.wav", "7_theo_5.wav", "3_anna_4.wav", "3_anna_12.wav")


def rows(config: DataConfig) -> dict[str, list]:
    found = sources.read(config, 0)
    assert (found.medium, found.rate, found.speakers) == ("audio", 8000, ("anna", "theo"))
    return {split: list(make()) for split, make in found.splits.items()}


@pytest.mark.parametrize("packed", [False, True])
def test_spoken_digits_are_split_by_take(tmp_path, packed):
    files = {name: wav(number + 1) for number, name in enumerate(NAMES)}
    mirror = tmp_path / ("fsdd.tar.xz" if packed else "fsdd")
    if packed:
        with tarfile.open(mirror, "w:xz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(f"fsdd/recordings/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        (mirror / "recordings").mkdir(parents=True)
        for name, content in files.items():
            (mirror / "recordings" / name).write_bytes(content)
    found = rows(DataConfig(source="spoken_digits", mirror=str(mirror), **WHERE))
    told = {
        split: [(int(row["label"]), int(row["speaker"]), int(row["audio"][0, 0])) for row in made]
        for split, made in found.items()
    }
    assert told == {"train": [(3, 0, 4), (7, 1, 2)], "test": [(3, 0, 3), (7, 1, 1)]}
    assert found["train"][0]["audio"].shape == (1, 400) and not found["train"][0]["audio"][0, 300:].any()


def test_a_mirror_without_recordings_is_told(tmp_path):
    for mirror, message in ((None, "spoken_digits needs one"), (str(tmp_path), "holds no recordings")):
        with pytest.raises(DataError, match=f"data.mirror.*{message}.*expected a folder or an archive"):
            sources.read(DataConfig(source="spoken_digits", mirror=mirror), 0)
    with pytest.raises(DataError, match="cannot be read"):
        sources.read(DataConfig(source="spoken_digits", mirror=str(tmp_path / "gone.tar")), 0)


def test_a_folder_of_clips_with_tables_says_class_and_speaker(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(wav(number + 1))
    (tmp_path / "broken.flac").write_bytes(b"no sound")
    lines = [{"file_name": name, "label": name[0], "who": name.split("_")[1]} for name in NAMES]
    lines.insert(3, {"file_name": "broken.flac", "label": "7", "who": "theo"})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines[:4])))
    (tmp_path / "test.jsonl").write_text(json.dumps(lines[4]))
    found = rows(DataConfig(source="folder", medium="audio", path=Path(tmp_path), speaker_key="who", **WHERE))
    (rejected,) = [row for row in found["train"] if isinstance(row, Rejected)]
    assert rejected.path == "broken.flac" and rejected.reason
    kept = [row for row in found["train"] if not isinstance(row, Rejected)]
    assert [(int(row["label"]), int(row["speaker"])) for row in kept] == [(0, 0), (1, 1), (1, 1)]
    assert [int(row["speaker"]) for row in found["test"]] == [0]


def test_sub_folders_of_clips_are_classes(tmp_path):
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.wav").write_bytes(wav(5))
    found = sources.read(DataConfig(source="folder", medium="audio", path=tmp_path, test_fraction=0.4, **WHERE), 0)
    assert found.classes == ("cat", "dog") and found.medium == "audio" and found.speakers == ()
    with pytest.raises(DataError, match="holds no audio; expected class sub-folders with clips"):
        (tmp_path / "empty").mkdir()
        sources.read(DataConfig(source="folder", medium="audio", path=tmp_path / "empty"), 0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros(300), "is silent; its channels are averaged into one"),
        (np.stack([np.full(300, 99), np.full(300, -99)], 1), "is silent; its channels are averaged into one"),
        (np.repeat([0, 99], 400), "is silent in its first 0.05 s, which a row keeps of 0.1 s"),
        (np.full(16, 99), "has 2 ms of sound, expected at least 20 ms"),
        (np.pad([99.0], (3, 300)), "has 0.5 ms of sound, expected at least 20 ms"),
    ],
)
def test_a_clip_of_nothing_is_left_out_with_the_reason(tmp_path, values, told):
    for number in range(2):
        (tmp_path / f"{number}.wav").write_bytes(wav(number + 1))
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((values.ndim, 2, 8000, 0, "NONE", ""))
        file.writeframes(values.astype(np.int16).tobytes())
    config = DataConfig(source="folder", path=tmp_path, medium="audio", **WHERE)
    items = [item for make in sources.read(config, 0).splits.values() for item in make()]
    assert [item for item in items if isinstance(item, Rejected)] == [Rejected(path="x.wav", reason=told)]


def test_clips_by_the_names_of_side_files_are_clips(tmp_path):
    for name in ("notice.wav", "license.1.wav", "hello.wav"):
        (tmp_path / name).write_bytes(wav(1))
    for name in ("LICENSE", "README.de", "NOTICE.txt"):
        (tmp_path / name).write_text("text")
    found = sources.read(DataConfig(source="folder", path=tmp_path, medium="audio", **WHERE), 0)
    assert sum(len(list(make())) for make in found.splits.values()) == 3 and found.facts["side_files"] == 3


def test_a_medium_that_is_none_or_another_than_the_sources_is_told():
    with pytest.raises(ValueError, match="medium: expected one of audio, "):
        DataConfig(source="folder", medium="smell")
    with pytest.raises(ValueError, match="medium: source digits knows its own; expected none"):
        DataConfig(medium="audio")
