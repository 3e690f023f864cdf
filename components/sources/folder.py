"""A folder of one's own images. How it may be laid out, layouts.py says; how tables describe images, tables.py.

Hidden files and folders, system litter (Thumbs.db, __MACOSX) and side files (.txt, .json, LICENSE, README and the like)
are no images; the manifest counts the side files. Everything else is expected to be an image: what Pillow cannot read,
whatever its name, is left out and listed with the reason, as are images that are not described as the others are.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from components.data.dataset import Rejected
from components.data.media import Medium
from components.errors import DataError
from components.sources import S3, DataConfig, Row, Source, file_row, split_rank
from components.sources.layouts import LAYOUTS, Described, Files, Item, arrange, name_of

_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
_SIDE_SUFFIXES = {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".log"}
_SIDE_SUFFIXES |= {".caption", ".npz", ".safetensors"}  # texts, and what other tools cache of images
_SIDE_STEMS = {"license", "licence", "copying", "notice", "readme", "authors", "changelog", "checksums", "sha256sums"}
_PACKED = {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".parquet", ".arrow", ".tfrecord", ".h5", ".hdf5", ".mdb"}


def read(folder: Path, config: DataConfig, seed: int) -> Source:
    """Lists the folder; images are decoded as the splits are iterated, in the order of their names.

    A split that the folder gives is kept. Otherwise which split an image is in depends on its name and the seed alone,
    so added images move no others. Raises DataError if the folder is missing, has no layout that is known, or holds
    fewer than two images.
    """
    files = list_files(folder)
    if not config.source.startswith(S3):
        refuse_linked_folders(folder)
    of, shape = config.of()
    if not files.images:
        raise DataError(f"{folder}: holds no {of.name}; {LAYOUTS.format(rows=of.plural)}")
    arranged = arrange(files, config.layout, config.label_key, config.speaker_key)
    items = [*arranged.train, *(arranged.test or ())]
    described = {item.name: item for item in items if isinstance(item, Described)}
    classes = tuple(sorted({item.label for item in described.values() if item.label is not None}))
    parts = {"train": arranged.train, "test": arranged.test}
    if parts["test"] is None:
        labels = {name: item.label for name, item in described.items()}
        in_test = held_out(set(described), seed, config.test_fraction, folder, labels)
        parts = {"train": [], "test": []}
        for item in items:
            parts["test" if name_of(item) in in_test else "train"].append(item)
    parts["train"] = [item for item in parts["train"] for _ in range(getattr(item, "repeats", 1))]
    length = max((len(item.caption.encode()) for item in described.values() if item.caption), default=1)
    speakers = tuple(sorted({item.speaker for item in described.values() if item.speaker is not None}))
    numbers = tuple(map(_numbered, (classes, speakers)))
    decode = functools.partial(_decode, config=config, of=of, shape=shape, numbers=numbers, caption_length=length)
    where = config.source if config.source.startswith(S3) else folder.as_posix()
    facts = {"source": where, "seed": seed, "side_files": len(files.side_files)}
    facts |= {"test_split": "given"} if arranged.test is not None else {"test_fraction": config.test_fraction}
    facts |= {"unused_validation_images": arranged.unused} if arranged.unused else {}
    splits = {split: functools.partial(_ordered_map, decode, part) for split, part in parts.items()}
    has_captions = any(item.caption is not None for item in described.values())
    told = notes(folder, arranged.unused)
    return Source(
        classes=classes,
        facts=facts,
        splits=splits,
        medium=of.name,
        rate=of.rate,
        speakers=speakers,
        captions=has_captions,
        notes=told,
    )


def notes(folder: Path, unused: int) -> tuple[str, ...]:
    """What a reader of the summary should know of a folder."""
    return (f"{unused} images of its validation split are in neither: its test split is the test split",) * bool(unused)


def refuse_linked_folders(folder: Path) -> None:
    """Raises DataError of a link to a folder inside this one, behind which DVC would see no change. It looks behind
    links to files, and behind this folder, if it is one."""
    for root, folders, _ in os.walk(folder):
        for link in (Path(root, name) for name in sorted(folders) if not _is_litter(name)):
            if link.is_symlink():
                raise DataError(
                    f"{link}: a link to a folder, behind which DVC would see no change; expected the folder itself, by "
                    "data.path or copied here, or links to its files, as `cp -rs` makes them"
                )


def list_files(folder: Path) -> Files:
    """Everything below `folder` that should be an image, and side files, each sorted by name. Links are followed, each
    folder once. Raises DataError if there is no such folder, or one that cannot be listed."""
    if not folder.is_dir():
        hint = "; ~ is not read, write the folder out" if folder.parts[:1] == ("~",) else ""
        raise DataError(f"{folder}: no such folder{hint}; {LAYOUTS.format(rows='images')}")
    images, side_files, seen = {}, {}, set()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_litter(name))
        for path in (Path(root, name) for name in names if not _is_litter(name)):
            kind = side_files if _is_side_file(path) else images
            kind[_printable(path.relative_to(folder).as_posix())] = path
    return Files(folder, dict(sorted(images.items())), dict(sorted(side_files.items())))


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: this folder cannot be listed ({error.strerror})")


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _is_side_file(path: Path) -> bool:
    is_named_so = (
        path.name.split(".")[0].lower() in _SIDE_STEMS and path.suffix.lower() not in Image.registered_extensions()
    )
    return is_named_so or path.suffix.lower() in _SIDE_SUFFIXES


def _printable(name: str) -> str:
    # file names are bytes; those that are not UTF-8 must still go into a manifest
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def held_out(
    names: set[str], seed: int, fraction: float, folder: Path, classes: Mapping[str, str | None] | None = None
) -> set[str]:
    """The names whose images make the test split: each with probability `fraction`, but never none and never all, nor
    all of one of the `classes`, by name. Raises DataError if there are fewer than two."""
    if len(names) < 2:
        raise DataError(f"{folder}: found {len(names)} usable images; expected at least two, to train and to test on")
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


def _decode(
    item: Item,
    config: DataConfig,
    of: Medium,
    shape: tuple[int, ...],
    numbers: tuple[dict[str, int], dict[str, int]],
    caption_length: int,
) -> Row | Rejected:
    """`numbers`: of the classes and of the speakers, by name."""
    if isinstance(item, Rejected):
        return item
    try:
        row = file_row(item.path, config, of, shape)
    except DataError as error:
        packed = item.path.suffix.lower() in _PACKED
        return Rejected(
            path=item.name, reason=f"an archive or table; expected its {of.plural} unpacked" if packed else str(error)
        )
    for column, known, name in zip(("label", "speaker"), numbers, (item.label, item.speaker), strict=True):
        if name is not None:
            row[column] = np.array(known[name], np.int64)
    if item.caption is not None:
        row["caption"] = np.frombuffer(item.caption.encode().ljust(caption_length, b"\0"), np.uint8)
    return row


def _ordered_map(function: Callable[[Item], Row | Rejected], items: Iterable[Item]) -> Iterator[Row | Rejected]:
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
