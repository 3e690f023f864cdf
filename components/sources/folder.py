"""A folder of one's own images, in one of two layouts.

- Class sub-folders: every image below `<folder>/<class>/`, at any depth, has that class.
- One .jsonl directly in the folder, a JSON object a line: `file_name`, `image` or `file` names the image, `caption` or
  `text` describes it, `label`, or what data.label_key says, is its class. At least one of caption and label. The image
  is sought at that path in the folder, else wherever below it exactly one file's path ends so (an `images/` folder need
  not be repeated).

Hidden files and folders, system litter (Thumbs.db, __MACOSX) and side files (.txt, .json, LICENSE, README and the like)
are passed over; the manifest counts the side files. Everything else is expected to be an image: what Pillow cannot
read, whatever its name, is left out and listed with the reason, as are images that have no class or caption.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from components.data.dataset import Rejected
from components.data.media.image import MEDIUM
from components.errors import DataError
from components.sources import S3, DataConfig, Row, Source, split_rank

_FILE_KEYS = ("file_name", "image", "file")
_CAPTION_KEYS = ("caption", "text")
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
_SIDE_SUFFIXES = {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".log"}
_SIDE_STEMS = {"license", "licence", "copying", "notice", "readme", "authors", "changelog", "checksums", "sha256sums"}
_LAYOUTS = "expected class sub-folders with images, or images and one .jsonl that names them"


@dataclass(frozen=True)
class Listed:
    """One image to be read. `name` is its path in the folder, printable on any terminal."""

    name: str
    path: Path
    label: int | None = None
    caption: str | None = None


def read(folder: Path, config: DataConfig, seed: int) -> Source:
    """Lists the folder; images are decoded as the splits are iterated, in the order of their names.

    Which split an image is in depends on its name and the seed alone, so added images move no others. Raises DataError
    if the folder is missing, has neither layout, or holds fewer than two images.
    """
    images, num_side_files = find_images(folder)
    tables = sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith("."))
    if len(tables) > 1:
        raise DataError(f"{folder}: found {', '.join(path.name for path in tables)}; expected one .jsonl")
    if not images:
        raise DataError(f"{folder}: holds no image; {_LAYOUTS}")
    items, classes = _by_table(tables[0], images, config.label_key) if tables else _by_class(folder, images)
    in_test = held_out({item.name for item in items if isinstance(item, Listed)}, seed, config.test_fraction, folder)
    parts: dict[str, list[Listed | Rejected]] = {"train": [], "test": []}
    for item in items:
        parts["test" if _name_of(item) in in_test else "train"].append(item)
    length = max((len(item.caption.encode()) for item in items if isinstance(item, Listed) and item.caption), default=1)
    decode = functools.partial(_decode, config=config, caption_length=length)
    where = config.source if config.source.startswith(S3) else folder.as_posix()
    return Source(
        classes=classes,
        facts={"source": where, "seed": seed, "test_fraction": config.test_fraction, "side_files": num_side_files},
        splits={split: functools.partial(_ordered_map, decode, part) for split, part in parts.items()},
    )


def find_images(folder: Path) -> tuple[dict[str, Path], int]:
    """Name -> path of everything below `folder` that should be an image, sorted by name, and the number of side files.
    Links are followed, each folder once. Raises DataError if there is no such folder, or one that cannot be listed."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {_LAYOUTS}")
    found, num_side_files, seen = {}, 0, set()
    for root, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_litter(name))
        for path in (Path(root, name) for name in files if not _is_litter(name)):
            if _is_side_file(path):
                num_side_files += 1
            else:
                found[_printable(path.relative_to(folder).as_posix())] = path
    return dict(sorted(found.items())), num_side_files


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


def _name_of(item: Listed | Rejected) -> str:
    return item.name if isinstance(item, Listed) else item.path


def held_out(names: set[str], seed: int, fraction: float, folder: Path) -> set[str]:
    """The names whose images make the test split: each with probability `fraction`, but never none and never all.
    Raises DataError if there are fewer than two."""
    if len(names) < 2:
        raise DataError(f"{folder}: found {len(names)} usable images; expected at least two, to train and to test on")
    ranked = sorted(names, key=lambda name: (split_rank(seed, name), name))
    num_test = sum(split_rank(seed, name) < fraction for name in names)
    return set(ranked[: min(max(1, num_test), len(ranked) - 1)])


def _by_class(folder: Path, images: dict[str, Path]) -> tuple[list[Listed | Rejected], tuple[str, ...]]:
    classes = tuple(sorted({name.split("/")[0] for name in images if "/" in name}))
    if not classes:
        raise DataError(f"{folder}: {len(images)} images lie directly in it, without a class or caption; {_LAYOUTS}")
    labels = {name: label for label, name in enumerate(classes)}
    return [
        Listed(name, path, label=labels[name.split("/")[0]])
        if "/" in name
        else Rejected(path=name, reason="lies outside the class sub-folders")
        for name, path in images.items()
    ], classes


def _by_table(table: Path, images: dict[str, Path], label_key: str) -> tuple[list[Listed | Rejected], tuple[str, ...]]:
    lines = list(_parse(table, label_key))
    has_caption = any("caption" in line for line in lines)
    classes = tuple(sorted({line["label"] for line in lines if "label" in line}))
    labels = {name: label for label, name in enumerate(classes)}
    if not has_caption and not classes:
        raise DataError(
            f"{table}: no line has a caption or label; expected one of {', '.join(_CAPTION_KEYS)}, {label_key}"
        )
    locate = _locator(images)
    items: list[Listed | Rejected] = []
    for line in lines:
        name, problem = locate(line["file"])
        for column, wanted in (("caption", has_caption), ("label", bool(classes))):
            problem = problem or (
                f"its line in {table.name} has no {column}" if wanted and column not in line else None
            )
        if problem:
            items.append(Rejected(path=name, reason=problem))
        else:
            items.append(Listed(name, images[name], labels.get(line.get("label", "")), line.get("caption")))
    named = {_name_of(item) for item in items}
    unnamed = f"no line of {table.name} names it"
    items += [Rejected(path=name, reason=unnamed) for name in images if name not in named]
    return sorted(items, key=_name_of), classes


def _parse(table: Path, label_key: str) -> Iterator[dict[str, str]]:
    """Each line as {file, caption?, label?}. Raises DataError naming the line that is not an object with a file."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as UTF-8 text ({error})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{table}: line {number}"
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise DataError(f"{where}: expected an object with one of {', '.join(_FILE_KEYS)}, found {content!r:.80}")
        file = _first(content, _FILE_KEYS)
        if not isinstance(file, str) or not file:
            raise DataError(
                f"{where}: expected the image's path under one of {', '.join(_FILE_KEYS)}, found {file!r:.80}"
            )
        yield {"file": file, **_description(content, where, label_key)}


def _description(content: dict, where: str, label_key: str) -> dict[str, str]:
    found = {}
    caption, label = _first(content, _CAPTION_KEYS), content.get(label_key)
    if caption is not None:
        # a zero byte would end the stored caption; lone surrogates have no UTF-8
        if not isinstance(caption, str) or "\0" in caption or caption.encode("utf-8", "replace").decode() != caption:
            raise DataError(f"{where}: expected the caption to be text, found {caption!r:.80}")
        found["caption"] = caption
    if label is not None:
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise DataError(f"{where}: expected the label to be a name or number, found {label!r:.80}")
        found["label"] = str(label)
    return found


def _first(content: dict, keys: tuple[str, ...]) -> object:
    return next((content[key] for key in keys if content.get(key) is not None), None)


def _locator(images: dict[str, Path]) -> Callable[[str], tuple[str, str | None]]:
    """A function that finds an image as a table writes it: -> (its name, None) or (as written, what is wrong)."""
    endings = collections.defaultdict(list)
    for name in images:
        endings[name.rsplit("/", 1)[-1]].append(name)

    def locate(written: str) -> tuple[str, str | None]:
        name = _printable(os.path.normpath(written.encode("utf-8", "replace").decode()))
        if name in images:
            return name, None
        places = [place for place in endings[name.rsplit("/", 1)[-1]] if place.endswith(f"/{name}")]
        if len(places) == 1:
            return places[0], None
        return name, "names more than one file" if places else "no such image in the folder"

    return locate


def _decode(item: Listed | Rejected, config: DataConfig, caption_length: int) -> Row | Rejected:
    if isinstance(item, Rejected):
        return item
    try:
        row = {MEDIUM.column: MEDIUM.read(item.path, config.shape)}
    except DataError as error:
        return Rejected(path=item.name, reason=str(error))
    if item.label is not None:
        row["label"] = np.array(item.label, np.int64)
    if item.caption is not None:
        row["caption"] = np.frombuffer(item.caption.encode().ljust(caption_length, b"\0"), np.uint8)
    return row


def _ordered_map(
    function: Callable[[Listed | Rejected], Row | Rejected], items: Iterable[Listed | Rejected]
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
