"""Where data come from: one small seam, one module per source.

A source gives, for each split, a stream of rows and of the files that it had to leave out, without ever holding all
decoded rows at once. What becomes of the rows, and how a remote source reaches this machine, is not known here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator

from components.config import Strict
from components.data.crops import CropConfig, image_columns
from components.data.dataset import Rejected
from components.data.media import Medium, medium, medium_names
from components.data.media.image import MEDIUM as IMAGES
from components.data.randomness import hash64
from components.errors import DataError
from components.sources.tables import Keys

S3 = "s3://"
_NAMED = ("digits", "fashion_mnist", "folder", "moving_digits", "spoken_digits")
_MEDIA = {"moving_digits": "video", "spoken_digits": "audio"}  # of named sources; the others hold images
_LISTED = 5  # rejected files named in an error message
_HOPELESS = 100  # rejected files beyond max_rejected after which the rest of a source is not looked at

MOST_CAPTION = 4096  # bytes in UTF-8: all rows' captions are stored as wide as the longest
SECONDS = "seconds"  # of a row: how long its file lasts, where it tells

Row = dict[str, np.ndarray]
"""The medium's column: a row as its medium stores it; label, speaker: int64 (); caption: uint8 (L,), UTF-8 padded with
zeros; with data.crops those of data/crops.py. All but the first where the source has them, the same columns in every
row, and, but for frames of crops, the same shapes. Of sound and film also SECONDS, which `accepted` takes out."""


class MovingConfig(Strict):
    """The block `data.moving` of params.yaml."""

    sprites: Literal["digits", "fashion_mnist"] = "digits"
    side: int = Field(default=10, ge=8)  # pixels of a sprite's side
    speed: float = Field(default=1.0, gt=0)  # pixels a frame, along each axis that it moves on
    films: int = Field(default=4, ge=1)  # of each image


class DataConfig(Strict):
    """The `data` block of params.yaml."""

    source: str = "digits"  # digits, fashion_mnist, moving_digits, spoken_digits, folder, or s3://bucket/prefix
    medium: str = ""  # source folder or s3: what its files hold, such as audio or video; images if nobody says
    image_size: int | tuple[int, int] = 16  # pixels: both sides, or height and width
    channels: Literal[1, 3] = 1  # grey or RGB
    sample_rate: int = Field(default=16000, ge=1000)  # of sound: samples a second that clips are resampled to
    seconds: float = Field(default=1.0, gt=0)  # of sound: a row's length; longer clips are cut, shorter ones filled
    frames: int = Field(default=9, ge=1)  # of film: a row's length, 1 and a multiple of 4
    frame_rate: float = Field(default=8.0, gt=0)  # of film: frames a second
    moving: MovingConfig = MovingConfig()  # moving_digits: what moves, and how
    crops: CropConfig | None = None  # of images: what crops are taken from, in the sizes of which buckets
    test_fraction: float = Field(default=0.2, gt=0, lt=1)  # of a source without a test split of its own
    rows_per_shard: int = Field(default=4096, gt=0)
    max_rejected: int = Field(default=0, ge=0)  # files that may be left out before the stage stops
    # fashion_mnist, moving or not: folder or URL with the four files; None is the official address; spoken_digits:
    # folder or archive with the recordings
    mirror: str | None = None
    caption: str = ""  # of sources with classes and no captions: what is said of each row, as the digit {}
    label_key: str = Field(default="label", min_length=1)  # source folder: the column of a table for a file's class
    # likewise for its caption, of a WebDataset an ending too; None: caption, text, txt, prompt and the like
    caption_key: str | None = Field(default=None, min_length=1)
    speaker_key: str | None = None  # likewise for who speaks in it; None: nobody is told apart
    path: Path = Path("data/raw")  # source folder: where the images lie; DVC watches it
    # source folder: read off names and tables; or every sub-folder of it is a class, whatever its name; or none is
    layout: Literal["auto", "classes", "flat"] = "auto"
    objects: Path | None = None  # s3: the manifest of the versions to take (pipelines.ingest); None is what is there

    @field_validator("source")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value in _NAMED or (value.removeprefix(S3).strip("/") and value.startswith(S3)):
            return value
        raise ValueError(f"expected {', '.join(_NAMED)} or s3://bucket/prefix")

    @field_validator("caption")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if value and (value.count("{}") != 1 or {"{", "}"} & set(value.replace("{}", ""))):
            raise ValueError("expected a text with one {} in it, where the name of the class goes")
        return value

    @field_validator("image_size", mode="before")
    @classmethod
    def _are_sides(cls, value: object) -> object:
        sides = [value, value] if isinstance(value, int) else value
        if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_is_side, sides)):
            raise ValueError("expected a number of pixels, at least 8, or two of them, [height, width]")
        return value

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if self.medium and self.medium not in medium_names():
            raise ValueError(f"medium: expected one of {', '.join(medium_names())}")
        if self.medium and self.source in _NAMED and self.source != "folder":
            raise ValueError(f"medium: source {self.source} knows its own; expected none")
        if self.crops is not None and (named := self.medium or _MEDIA.get(self.source, IMAGES.name)) != IMAGES.name:
            raise ValueError(f"crops: images alone have them, found medium {named}")
        return self

    def of(self, usual: str = "") -> tuple[Medium, tuple[int, ...]]:
        """The medium of the rows, at their rate, and a row's shape. `usual`: where the block does not say it, in the
        place of the source's own."""
        name = self.medium or usual or _MEDIA.get(self.source, "image")
        shape, rate = medium(name).configured(self.model_dump())
        return medium(name, rate=rate), shape

    @property
    def keys(self) -> Keys:
        """The columns of tables that say class, caption and speaker."""
        return Keys(self.label_key, self.caption_key, self.speaker_key)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row, channels first."""
        return self.of()[1]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """That crops come in, the usual one first; none without crops."""
        return () if self.crops is None else self.crops.sizes(self.shape[1:])


def image_row(image: Image.Image, config: DataConfig) -> Row:
    """The columns of an 8-bit image without transparency."""
    return image_columns(image, config.shape, config.crops)


def file_row(file: Path | BinaryIO, config: DataConfig, of: Medium, shape: tuple[int, ...]) -> Row:
    """The columns of a file of a medium. Raises DataError with the reason, without the path, if it cannot be read."""
    if config.crops is None:
        row, seconds = of.data_row(file, shape)
        return {of.column: row} | ({SECONDS: np.array(seconds)} if seconds else {})
    return IMAGES.opened(file, lambda image: image_columns(image, shape, config.crops))


def _is_side(value: object) -> bool:
    return type(value) is int and value >= 8


@dataclass(frozen=True)
class Source:
    """`splits`: train and test, each a function that starts its stream anew. `facts` go into the manifest, `notes` are
    told beside."""

    classes: tuple[str, ...]
    facts: dict[str, str | int | float]
    splits: dict[str, Callable[[], Iterator[Row | Rejected]]]
    medium: str = "image"
    rate: float = 0.0  # of the medium, where it has one
    speakers: tuple[str, ...] = ()
    captions: bool = False  # whether rows have them
    notes: tuple[str, ...] = ()
    statistics: dict[str, tuple[float, ...]] = field(default_factory=dict)  # the manifest's


def read(config: DataConfig, seed: int, mirrored: Path | None = None) -> Source:
    """The source that `config` names. `seed` draws the test split where the source has none of its own; `mirrored` is
    the local copy of an s3 source. Raises DataError if there is nothing that could be read."""
    found = _read(config, seed, mirrored)
    return captioned(found, config.caption) if config.caption else found


def captioned(source: Source, template: str) -> Source:
    """The source with a caption a row, made of its class' name. Raises DataError of one without classes, or with
    captions of its own."""
    if source.captions or len(source.classes) == 0:
        found = "captions of its own" if source.captions else "no classes"
        raise DataError(
            f"data.caption: it makes captions of class names; expected a source with these alone, found {found}"
        )
    texts = [template.format(name).encode() for name in source.classes]
    longest = max(map(len, texts))
    if longest > MOST_CAPTION:
        raise DataError(f"data.caption: makes a caption of {longest} bytes, expected at most {MOST_CAPTION}")
    columns = [np.frombuffer(text.ljust(longest, b"\0"), np.uint8) for text in texts]

    def said(rows: Callable[[], Iterator[Row | Rejected]]) -> Iterator[Row | Rejected]:
        for row in rows():
            yield row if isinstance(row, Rejected) else {**row, "caption": columns[int(row["label"])]}

    splits = {name: functools.partial(said, rows) for name, rows in source.splits.items()}
    return replace(source, splits=splits, captions=True, facts={**source.facts, "caption": template})


def _read(config: DataConfig, seed: int, mirrored: Path | None) -> Source:
    # imported on demand: scikit-learn takes a second that the other sources need not pay
    if config.source == "digits":
        from components.sources import digits

        return digits.read(config, seed)
    if config.source == "fashion_mnist":
        from components.sources import fashion_mnist

        return fashion_mnist.read(config)
    if config.source == "spoken_digits":
        from components.sources import spoken_digits

        return spoken_digits.read(config)
    if config.source == "moving_digits":
        return _moving(config, seed)
    from components.sources import folder

    location = mirrored if config.source.startswith(S3) else config.path
    assert location is not None, "an s3 source is mirrored before it is read"
    return folder.read(location, config, seed)


def _moving(config: DataConfig, seed: int) -> Source:
    """Films of what another source's images show."""
    from components.sources import moving_digits

    moving, (of, shape) = config.moving, config.of()
    still = config.model_copy(update={"source": moving.sprites, "image_size": moving.side})
    sprites = read(still, seed)
    told = (sprites.classes, moving, shape, seed)
    return Source(
        classes=sprites.classes,
        facts={**sprites.facts, "source": "moving_digits", "sprites": moving.sprites, "films": moving.films},
        splits={
            split: functools.partial(moving_digits.rows, images, *told, split)
            for split, images in sprites.splits.items()
        },
        medium=of.name,
        rate=of.rate,
        captions=True,
        statistics=moving_digits.statistics(moving, shape),
    )


def accepted(
    items: Iterable[Row | Rejected], rejected: list[Rejected], max_rejected: int, seconds: list[float] | None = None
) -> Iterator[Row]:
    """The rows among `items`; the others are appended to `rejected`, which several splits may share, and how long the
    rows' files last to `seconds`.

    Raises DataError when more than `max_rejected` were left out: at the end of the stream, so that the message counts
    them all, or at once when there are very many.
    """
    for item in items:
        if not isinstance(item, Rejected):
            if SECONDS in item and seconds is not None:
                seconds.append(float(item[SECONDS]))
            yield {name: part for name, part in item.items() if name != SECONDS}
            continue
        rejected.append(item)
        if len(rejected) > max_rejected + _HOPELESS:
            break
    if len(rejected) > max_rejected:
        found = f"found at least {len(rejected)}: {_named(rejected)}"
        raise DataError(f"data.max_rejected allows {max_rejected} files to be left out, {found}")


def left_out(rejected: Sequence[Rejected]) -> str:
    """The end of a message on what was left out: how many files, the first of them and why. Empty of none."""
    return f"; left out {len(rejected)}: {_named(rejected)}" if rejected else ""


def _named(rejected: Sequence[Rejected]) -> str:
    named = "; ".join(f"{file.path} ({file.reason})" for file in rejected[:_LISTED])
    return f"{named}; ..." if len(rejected) > _LISTED else named


def split_rank(seed: int, name: str | int) -> float:
    """A number in [0, 1) that depends on seed and name alone: the lowest ones make the test split."""
    return (hash64("split", seed, name) >> 11) / 2**53 + 0.5
