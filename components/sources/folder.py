"""A folder of one's own images. How it may be laid out, layouts.py says; how tables describe images, tables.py.

Hidden files and folders, system litter (Thumbs.db, __MACOSX) and side files (.txt, .json, LICENSE, README and the like)
are no images; the manifest counts the side files. Everything else is expected to be an image: what Pillow cannot read,
whatever its name, is left out and listed with the reason, as are images that are not described as the others are.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from components.data.dataset import Rejected
from components.data.media import Medium
from components.errors import DataError
from components.sources import S3, DataConfig, Source, packed
from components.sources.described import source_of
from components.sources.layouts import LAYOUTS, Described, Files, Item, arrange
from components.sources.sidecars import SIDE_STEMS

_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
_SIDE_SUFFIXES = {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".log"}
_SIDE_SUFFIXES |= {".caption", ".npz", ".safetensors"}  # texts, and what other tools cache of images
_MEDIA = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"}
_MEDIA |= {".mp4", ".m4v", ".webm", ".mkv", ".mov", ".avi"}  # beside what Pillow reads
_PACKED = {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".parquet", ".arrow", ".tfrecord", ".h5", ".hdf5", ".mdb"}


def read(folder: Path, config: DataConfig, seed: int) -> Source:
    """Lists the folder; images are decoded as the splits are iterated, in the order of their names.

    Raises DataError if the folder is missing, has no layout that is known, or holds fewer than two images.
    """
    files = list_files(folder)
    if not config.source.startswith(S3):
        refuse_linked_folders(folder)
    of, _ = config.of()
    if not files.images:
        raise DataError(f"{folder}: holds no {of.name}; {LAYOUTS.format(rows=of.plural)}")
    if config.layout == "auto" and (archives := packed.archives(files)):
        return packed.read(files, archives, config, seed)
    arranged = arrange(files, config.layout, config.keys)
    contents = functools.partial(_contents, of)
    return source_of(arranged, contents, folder, config, seed, side_files=len(files.side_files))


def _contents(of: Medium, items: list[Item]) -> Iterator[tuple[Item, Path | None]]:
    for item in items:
        if isinstance(item, Described) and (suffix := item.path.suffix.lower()) in _PACKED:
            alone = ", or no other files beside" if suffix in packed.SUFFIXES else ""
            reason = f"an archive or table; expected its {of.plural} unpacked{alone}"
            yield Rejected(path=item.name, reason=reason), None
        else:
            yield item, item.path if isinstance(item, Described) else None


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
    is_named_so = path.name.split(".")[0].lower() in SIDE_STEMS and not _is_named_as_data(path)
    return is_named_so or path.suffix.lower() in _SIDE_SUFFIXES


def _is_named_as_data(path: Path) -> bool:
    return path.suffix.lower() in {*Image.registered_extensions(), *_MEDIA}


def _printable(name: str) -> str:
    # file names are bytes; those that are not UTF-8 must still go into a manifest
    return os.fsencode(name).decode("utf-8", "backslashreplace")
