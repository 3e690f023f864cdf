"""Texts beside images: the caption of `1.png` in `1.txt`, `1.png.txt` or the same with .caption."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from components.errors import DataError
from components.sources import tables
from components.sources.tables import text_of

SUFFIXES = (".txt", ".caption")
# of side files that describe nothing, and are no caption without an image
SIDE_STEMS = {"license", "licence", "copying", "notice", "readme", "authors", "changelog", "checksums", "sha256sums"}
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
_BOX = re.compile(rf"\s*\d+(\s+{_NUMBER}){{4,}}\s*", re.IGNORECASE)


def captions(images: Iterable[str], side_files: Mapping[str, Path]) -> dict[str, str]:
    """The first line of the text beside each image that has one, by the image's name; empty of a blank one. Raises
    DataError of an image with two texts, or of one that is no text."""
    texts = {_lower_suffix(name): path for name, path in side_files.items()}
    found = {}
    for name in images:
        named = [f"{start}{suffix}" for start in _starts(name) for suffix in SUFFIXES]
        beside = [texts[one] for one in named if one in texts]
        if len(beside) > 1:
            raise DataError(f"{beside[0]}: found {beside[1].name} beside it; expected one text an image")
        if beside:
            found[name] = first_line(text_of(beside[0]), beside[0])
    return found


def orphans(images: Iterable[str], side_files: Mapping[str, Path]) -> list[str]:
    """The texts that no image lies beside, sorted by name."""
    starts = {start for name in images for start in _starts(name)}
    texts = {name: _lower_suffix(name).rpartition(".") for name in side_files}
    return sorted(
        name
        for name, (start, _, suffix) in texts.items()
        if f".{suffix}" in SUFFIXES
        and start not in starts
        and side_files[name].name.split(".")[0].lower() not in SIDE_STEMS
        and not tables.is_table(side_files[name])
    )


def _starts(image: str) -> list[str]:
    """What the names of texts beside an image begin with."""
    stem = image.rsplit(".", 1)[0] if "." in image.rsplit("/", 1)[-1] else image
    return list(dict.fromkeys((stem, image)))


def _lower_suffix(name: str) -> str:
    start, dot, suffix = name.rpartition(".")
    return f"{start}{dot}{suffix.lower()}"


def first_line(text: str, where: str | Path) -> str:
    """The first line of a text that is not blank, or nothing. Raises DataError, naming `where`, of a zero byte, which
    would end a stored caption."""
    if "\0" in text:
        raise DataError(f"{where}: expected a caption, found a zero byte")
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def refuse_boxes(texts: Mapping[str, str], where: Path, cure: str) -> None:
    """Raises DataError, naming `where` and the `cure`, of texts that are boxes in which a detector finds objects."""
    said = [text for text in texts.values() if text]  # an image without objects has an empty one
    if said and all(map(_BOX.fullmatch, said)):
        example = said[0]
        raise DataError(
            f"{where}: the texts beside the images hold a detector's boxes ({example[:40]!r}); expected captions; "
            f"{cure}"
        )
