"""The Free Spoken Digit Dataset (Jackson et al.): 3,000 recordings at 8 kHz of six people who say the ten digits fifty
times each.

https://github.com/Jakobovski/free-spoken-digit-dataset; its recordings are named digit_speaker_take.wav.
"""

from __future__ import annotations

import functools
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from components.data.dataset import Rejected
from components.data.media import Medium
from components.errors import DataError
from components.sources import SECONDS, DataConfig, Row, Source
from components.sources.digits import CLASSES

HELD_OUT_TAKES = 5  # of each speaker and digit: the publisher's own split
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
_EXPECTED = "a folder or an archive (.tar.gz, .tar.xz) of its recordings, digit_speaker_take.wav, from "
_EXPECTED += "https://github.com/Jakobovski/free-spoken-digit-dataset"

Recordings = Mapping[str, bytes]


def read(config: DataConfig) -> Source:
    """Takes 0 to 4 of each speaker and digit are the test split. Raises DataError of a mirror that is missing or holds
    no recordings."""
    found = recordings(config.mirror)
    speakers = tuple(sorted({_NAME.fullmatch(name)[2] for name in found}))
    of, shape = config.of("audio")
    rows = functools.partial(_rows, found, speakers, of, shape)
    return Source(
        classes=CLASSES,
        facts={"source": "spoken_digits", "recordings": len(found)},
        splits={"train": functools.partial(rows, False), "test": functools.partial(rows, True)},
        medium=of.name,
        rate=of.rate,
        speakers=speakers,
    )


def recordings(mirror: str | None) -> Recordings:
    """The recordings by name, sorted."""
    if mirror is None:
        raise DataError(f"data.mirror: spoken_digits needs one; expected {_EXPECTED}")
    path = Path(mirror)
    try:
        found = _of_folder(path) if path.is_dir() else _of_archive(path)
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"data.mirror {mirror}: cannot be read ({reason}); expected {_EXPECTED}") from None
    if not found:
        raise DataError(f"data.mirror {mirror}: holds no recordings; expected {_EXPECTED}")
    return dict(sorted(found.items()))


def _of_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.wav") if _NAME.fullmatch(path.name)}


def _of_archive(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = (member for member in archive if member.isfile())
        named = ((member, Path(member.name).name) for member in files)
        return {name: archive.extractfile(member).read() for member, name in named if _NAME.fullmatch(name)}


def _rows(
    found: Recordings, speakers: tuple[str, ...], of: Medium, shape: tuple[int, ...], held_out: bool
) -> Iterator[Row | Rejected]:
    for name, content in found.items():
        digit, speaker, take = _NAME.fullmatch(name).groups()
        if (int(take) < HELD_OUT_TAKES) != held_out:
            continue
        try:
            values, seconds = of.data_row(io.BytesIO(content), shape)
        except DataError as error:
            yield Rejected(path=name, reason=str(error))
            continue
        yield {
            of.column: values,
            SECONDS: np.array(seconds),
            "label": np.array(int(digit), np.int64),
            "speaker": np.array(speakers.index(speaker), np.int64),
        }
