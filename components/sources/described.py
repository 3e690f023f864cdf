"""Sources whose rows are described one by one before any is decoded: files of a folder, members of archives, lines of
tables. Splits, classes and captions are made of the descriptions; contents are read and decoded as a split is iterated.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from components.data.dataset import Rejected
from components.data.media import Medium
from components.errors import DataError
from components.sources import MOST_CAPTION, S3, DataConfig, Row, Source, file_row, left_out, split_rank
from components.sources.layouts import Arranged, Described, Item, name_of

Contents = Callable[[list[Item]], Iterator[tuple[Item, Path | BinaryIO | None]]]
"""Items, each with its file, read when it is its turn; those that cannot be had become Rejected, without one."""


@dataclass(frozen=True)
class Decoder:
    """What becomes of an item and its content. `numbers`: of the classes and of the speakers, by name."""

    config: DataConfig
    of: Medium
    shape: tuple[int, ...]
    numbers: tuple[dict[str, int], dict[str, int]]
    caption_length: int

    def __call__(self, found: tuple[Item, Path | BinaryIO | None]) -> Row | Rejected:
        item, content = found
        if isinstance(item, Rejected):
            return item
        try:
            row = file_row(content, self.config, self.of, self.shape)
        except DataError as error:
            return Rejected(path=item.name, reason=str(error))
        for column, known, name in zip(("label", "speaker"), self.numbers, (item.label, item.speaker), strict=True):
            if name is not None:
                row[column] = np.array(known[name], np.int64)
        if item.caption is not None:
            row["caption"] = np.frombuffer(item.caption.encode().ljust(self.caption_length, b"\0"), np.uint8)
        return row


def source_of(
    arranged: Arranged, contents: Contents, folder: Path, config: DataConfig, seed: int, **facts: str | int
) -> Source:
    """The source of arranged items, `facts` for its manifests beside the usual ones.

    A split that is given is kept. Otherwise which split an item is in depends on its name and the seed alone, so that
    added ones move no others. Raises DataError of fewer than two.
    """
    of, shape = config.of()
    arranged = replace(
        arranged,
        train=list(map(_checked, arranged.train)),
        test=None if arranged.test is None else list(map(_checked, arranged.test)),
    )
    items = [*arranged.train, *(arranged.test or ())]
    described = {item.name: item for item in items if isinstance(item, Described)}
    classes = tuple(sorted({item.label for item in described.values() if item.label is not None}))
    speakers = tuple(sorted({item.speaker for item in described.values() if item.speaker is not None}))
    parts = {"train": arranged.train, "test": arranged.test}
    if parts["test"] is None:
        if len(described) < 2:
            rejected = left_out([item for item in items if isinstance(item, Rejected)])
            raise DataError(
                f"{folder}: found {len(described)} usable {of.plural}; expected at least two, to train and to test on"
                f"{rejected}"
            )
        labels = {name: item.label for name, item in described.items()}
        in_test = held_out(set(described), seed, config.test_fraction, labels)
        parts = {"train": [], "test": []}
        for item in items:
            parts["test" if name_of(item) in in_test else "train"].append(item)
    parts["train"] = [item for item in parts["train"] for _ in range(getattr(item, "repeats", 1))]
    length = max((len(item.caption.encode()) for item in described.values() if item.caption), default=1)
    decode = Decoder(config, of, shape, (_numbered(classes), _numbered(speakers)), length)
    where = config.source if config.source.startswith(S3) else folder.as_posix()
    told: dict[str, str | int | float] = {"source": where, "seed": seed, **facts}
    told |= {"test_split": "given"} if arranged.test is not None else {"test_fraction": config.test_fraction}
    told |= {"unused_validation_images": arranged.unused} if arranged.unused else {}
    return Source(
        classes=classes,
        facts=told,
        splits={split: functools.partial(_rows, decode, contents, part) for split, part in parts.items()},
        medium=of.name,
        rate=of.rate,
        speakers=speakers,
        captions=any(item.caption is not None for item in described.values()),
        notes=(*_notes(arranged, list(described.values())), *arranged.notes),
    )


def _checked(item: Item) -> Item:
    """The item, left out with the reason if its caption is blank or too long."""
    if isinstance(item, Rejected) or item.caption is None:
        return item
    if not item.caption.strip():
        return Rejected(path=item.name, reason="has no caption: its text is blank")
    size = len(item.caption.encode())
    if size > MOST_CAPTION:
        return Rejected(path=item.name, reason=f"its caption has {size} bytes, expected at most {MOST_CAPTION}")
    return item


def _notes(arranged: Arranged, described: list[Described]) -> Iterator[str]:
    if arranged.unused:
        yield f"{arranged.unused} images of its validation split are in neither: its test split is the test split"
    if several := sum(item.captions > 1 for item in described):
        yield f"{several} of {len(described)} have several captions: the first of each is taken"


def _rows(decode: Decoder, contents: Contents, part: list[Item]) -> Iterator[Row | Rejected]:
    return _ordered_map(decode, contents(part))


def held_out(names: set[str], seed: int, fraction: float, classes: Mapping[str, str | None] | None = None) -> set[str]:
    """Which of two or more names have images that make the test split: each with probability `fraction`, but never none
    and never all, nor all of one of the `classes`, by name."""
    ranked = sorted(names, key=lambda name: (split_rank(seed, name), name))
    num_test = sum(split_rank(seed, name) < fraction for name in names)
    num_test = min(max(1, num_test), len(ranked) - 1)
    labels = classes or {}
    left = collections.Counter(labels.values())

    def is_spared(name: str) -> bool:  # as the last of its class
        return labels.get(name) is not None and left[labels[name]] < 2

    test = []
    for name in ranked[:num_test]:
        if not is_spared(name):
            test.append(name)
            left[labels.get(name)] -= 1
    # where each of those was the only one of its class, the next that is not; or one is not trained on
    return set(test or [next((name for name in ranked if not is_spared(name)), ranked[0])])


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _ordered_map(
    function: Callable[[tuple[Item, Path | BinaryIO | None]], Row | Rejected],
    items: Iterable[tuple[Item, Path | BinaryIO | None]],
) -> Iterator[Row | Rejected]:
    """`map` on threads (Pillow decodes without the GIL) that looks only a few items ahead."""
    Image.init()  # Pillow loads its plugins on first need, which is not safe on several threads
    waiting = iter(items)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        ahead = collections.deque(pool.submit(function, item) for item in itertools.islice(waiting, 32))
        try:
            while ahead:
                done = ahead.popleft()
                ahead.extend(pool.submit(function, item) for item in itertools.islice(waiting, 1))
                yield done.result()
        finally:
            for future in ahead:
                future.cancel()
