"""Images in files of many: WebDataset's tars, or Parquet. Which file is of which split its name says, or no name does.

Only descriptions are held in memory; contents are read where they lie, a few at a time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from components.data.dataset import Rejected
from components.errors import DataError
from components.sources import DataConfig, Source
from components.sources.described import Contents, source_of
from components.sources.layouts import Arranged, Described, Files, Item, refuse_unlike, split_of
from components.sources.tables import Keys, listed

SUFFIXES = (".tar", ".parquet")
_SPLIT = re.compile(r"[a-z]+(?=$|[-_.\d])", re.IGNORECASE)  # the word that a file's name begins with

Reader = Callable[[Path, str, DataConfig], Iterator[Item]]
"""The items of a file and its name in the folder. One that cannot be read, or not to its end, ends with a Rejected."""


def archives(files: Files) -> dict[str, Path]:
    """The archives or tables of a folder that holds nothing else, by name; none of another folder. Parquet beside tars
    says of them what they hold themselves, as img2dataset writes it."""
    found = {suffix: {n: p for n, p in files.images.items() if p.suffix.lower() == suffix} for suffix in SUFFIXES}
    tars, tables = found.values()
    return (tars or tables) if len(tars) + len(tables) == len(files.images) else {}


def read(files: Files, found: dict[str, Path], config: DataConfig, seed: int) -> Source:
    """The source of a folder's archives. Raises DataError of splits without train, of fewer than two images, and of
    tables without a column of images."""
    if next(iter(found.values())).suffix.lower() == ".tar":
        from components.sources import webdataset as kind
    else:  # imported on demand: pyarrow takes a while
        from components.sources import parquet as kind
    reader: Reader = kind.items
    contents: Contents = kind.contents
    splits = _splits(files.folder, found)
    items = {
        split: [item for name in names for item in reader(found[name], name, config)] for split, names in splits.items()
    }
    items = _alike(items)
    left_out = [item for part in items.values() for item in part if isinstance(item, Rejected)]
    if left_out and len(left_out) == sum(map(len, items.values())):
        raise DataError(f"{files.folder}: nothing in it can be read, {left_out[0].path} first: {left_out[0].reason}")
    refuse_unlike(items, files.folder)
    notes = _columns_told(
        items, functools.partial(kind.columns_of, next(iter(found.values())), config), files.folder, config.keys
    )
    test = items.get("test", items.get("val"))
    unused = len(items.get("val", ())) if "test" in items else 0
    arranged = Arranged(items.get("train", items.get("", [])), test, unused, notes)
    facts = {"format": kind.NAME, "files": len(found)}
    return source_of(arranged, contents, files.folder, config, seed, **facts)


def _splits(folder: Path, found: dict[str, Path]) -> dict[str, list[str]]:
    """The files' names by split; all under the empty name where none says one."""
    splits: dict[str, list[str]] = {}
    for name in found:
        *folders, file = name.split("/")
        word = _SPLIT.match(file)
        said = [split_of(one) for one in (*folders, *([word[0]] if word else ()))]
        splits.setdefault(next(filter(None, reversed(said)), ""), []).append(name)
    if len(splits) > 1 and "" in splits:
        raise DataError(
            f"{folder}: {splits[''][0]} names no split, as other files here do; expected train, val or test in front "
            "of each name, or in none"
        )
    if "" not in splits and "train" not in splits:
        raise DataError(f"{folder}: found {', '.join(splits)} and no train; expected files of it beside")
    return splits


def _columns_told(
    items: dict[str, list[Item]],
    columns: Callable[[], tuple[str, ...]],
    folder: Path,
    keys: Keys,
) -> tuple[str, ...]:
    """A note on images of which nothing is said, though something lies beside them. Raises DataError of a column that
    the user names and that there is not. `columns`: those of the first file."""
    said = {
        name
        for part in items.values()
        for item in part
        if isinstance(item, Described)
        for name in ("caption", "label")
        if getattr(item, name) is not None
    }
    keys.refuse_unknown(said, columns, folder)
    found = () if said else columns()
    if not found:
        return ()
    cure = "data.caption_key or data.label_key may name one of them"
    return (f"nothing is read as caption or class; found {listed(found)}: {cure}",)


def _alike(items: dict[str, list[Item]]) -> dict[str, list[Item]]:
    """The items, those left out that lack what others have, and second ones of a name."""
    every = [item for part in items.values() for item in part if isinstance(item, Described)]
    wanted = [
        name for name in ("caption", "label", "speaker") if any(getattr(item, name) is not None for item in every)
    ]
    seen: set[str] = set()

    def checked(item: Item) -> Item:
        if isinstance(item, Rejected):
            return item
        lacks = next((name for name in wanted if getattr(item, name) is None), None)
        reason = f"has no {lacks}, as others have" if lacks else None
        reason = reason or ("a second one of this name" if item.name in seen else None)
        seen.add(item.name)
        return Rejected(path=item.name, reason=reason) if reason else item

    return {split: [checked(item) for item in part] for split, part in items.items()}
