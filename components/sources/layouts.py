"""How folders of images are laid out, by the meaning that the tools of the field give to names.

Outer folders such as `images/` and the names of splits are never classes. Within a split images are described, in this
order of preference, by a table, by a text file beside each, by the sub-folder that they lie in, or by nothing. What
would have to be guessed is refused.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from components.data.dataset import Rejected
from components.errors import DataError
from components.sources import sidecars, tables
from components.sources.tables import Keys, Locator, composed

Layout = Literal["auto", "classes", "flat"]
LAYOUTS = (  # `rows`: images, or what else the files hold
    "expected class sub-folders with {rows}, {rows} with a .jsonl or .csv that names them or with a .txt each, or "
    "{rows} alone"
)
_WITHOUT = "data.layout: classes or flat does without"
_NAMED = 5  # files that a note names
_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing)(ing)?[-_]?(\d+|set|images)?", re.IGNORECASE
)
_WRAPPERS = {"images", "image", "imgs", "img", "jpegimages", "jpg", "jpeg", "png", "pictures", "data", "dataset"}
_NO_CLASSES = {*_WRAPPERS, "masks", "mask", "labels", "annotations", "segmentationclass", "segmentationobject", "reg"}
_KOHYA = re.compile(r"([1-9]\d*)_(.+)")  # repeats, and the words for images without a text
_SHARD = re.compile(r"\d{5,}(_.*)?")  # as img2dataset names them; shorter numbers are classes


@dataclass(frozen=True, slots=True)
class Described:
    """An image and what its folder says of it. `name` is its path in the folder, printable on any terminal; `repeats`:
    how many training rows it makes; `start`, `size`: where in the file `path` it lies, of one in an archive; of one in
    a table `start` is its row."""

    name: str
    path: Path
    label: str | None = None
    caption: str | None = None
    repeats: int = 1
    speaker: str | None = None
    start: int = 0
    size: int = 0
    captions: int = 1  # that it came with; `caption` is the first


Item = Described | Rejected


@dataclass
class Arranged:
    """A folder's images by split. `test` is None where the folder has no split of its own; `unused`: how many images
    lie in a validation split beside a test split; `notes`: what is told of the folder beside."""

    train: list[Item]
    test: list[Item] | None = None
    unused: int = 0
    notes: tuple[str, ...] = ()


@dataclass
class Files:
    """What lies in a folder: images and side files, name -> path."""

    folder: Path
    images: Mapping[str, Path]
    side_files: Mapping[str, Path]

    def below(self, base: str) -> dict[str, Path]:
        """The images of a sub-folder, which is given with a slash behind; all of the empty one."""
        return {name: path for name, path in self.images.items() if name.startswith(base)}

    def tables(self, base: str) -> list[Path]:
        """The tables right in a sub-folder."""
        here = [path for name, path in self.side_files.items() if name.rpartition("/")[0] == base.rstrip("/")]
        return sorted(path for path in here if tables.is_table(path))


@dataclass
class _Part:
    """A split, or all: its images, their sub-folder behind outer ones, and the tables that describe them, each with its
    folder. `own`: no other part's images lie among these; `shared`: its table describes other parts, too."""

    name: str
    images: dict[str, Path]
    base: str = ""
    tables: list[tuple[Path, str]] = field(default_factory=list)
    own: bool = True
    shared: bool = False


def arrange(files: Files, layout: Layout, keys: Keys) -> Arranged:
    """Reads a folder's layout. Raises DataError of one that is none, or that would have to be guessed."""
    where = files.folder
    if layout == "flat":
        return Arranged([Described(name, path) for name, path in files.images.items()])
    if layout == "classes":
        return Arranged(_by_class(_Part("", dict(files.images)), where))
    parts = _parts(files)
    if not any(part.tables for part in parts) and (foreign := _foreign(files)):
        raise DataError(
            f"{where / foreign}: describes the images in a form that is not read; expected a .jsonl or .csv with a "
            f"line an image, of {tables.FILE_KEYS[0]} and caption or {keys.label}; {_WITHOUT}"
        )
    if unread := sorted(
        set(filter(tables.is_table, files.side_files.values())) - {t for p in parts for t, _ in p.tables}
    ):
        raise DataError(f"{unread[0]}: a table of images in a sub-folder; expected it in {where}; {_WITHOUT}")
    if not any(part.tables for part in parts):
        keys.refuse_unknown((), tuple, f"{where}: no table of the images in it")
    locator = Locator(files.images)
    found = {part.name: _described(part, files, locator, keys) for part in parts}
    found["train" if "train" in found else next(iter(found))] += _unnamed(parts, found)
    refuse_unlike(found, where)
    notes = () if any(part.tables for part in parts) else _on_orphans(files)
    if list(found) == [""]:
        return Arranged(found[""], notes=notes)
    if "train" not in found:
        names = ", ".join(f"{name}/" for name in found)
        raise DataError(f"{where}: found {names} and no train/; expected it beside, or data.layout: classes")
    test = found.get("test", found.get("val"))
    unused = found.get("val", []) if "test" in found else []
    return Arranged(found["train"], test, len(unused), notes)


def _on_orphans(files: Files) -> tuple[str, ...]:
    """A note on texts without an image, where texts beside images are read."""
    found = sidecars.orphans(files.images, files.side_files)
    named = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
    return (f"texts with no image beside them ({len(found)}): {named}",) if found else ()


def _foreign(files: Files) -> str | None:
    """The first side file that describes images in a form of other tools."""
    return next((name for name, path in files.side_files.items() if tables.is_foreign(path)), None)


def split_of(name: str) -> str | None:
    """train, val or test, if a name is that of a split."""
    if not _SPLIT.fullmatch(name):
        return None
    lower = name.lower()
    return "train" if lower.startswith("train") else "test" if lower.startswith("test") else "val"


def _parts(files: Files) -> list[_Part]:
    """The splits that the folder gives, or one part of all, with their tables. Raises DataError of folders whose names
    are no classes' to other tools."""
    base, known = _unwrapped(files, "")
    tops = _tops(files.below(base), base)
    splits = {top: split_of(top) for top in tops}
    if tops and all(splits.values()) and not _direct(files.below(base), base):
        parts: dict[str, _Part] = {}
        for top, split in splits.items():
            inner, own = _unwrapped(files, f"{base}{top}/")
            if split in parts:
                raise DataError(f"{files.folder}: found more than one folder of the {split} split; expected one")
            parts[split] = _Part(split, files.below(inner), inner, own or known, shared=not own)
        return [_checked(part, files.folder) for part in parts.values()]
    whole = _Part("", files.below(base), base, known)
    given = {split_of(table.stem): (table, at) for table, at in known}
    if len(known) > 1 and len(given) == len(known) and None not in given:
        return _split_by_tables(whole, given)
    return [_checked(whole, files.folder)]


def _unwrapped(files: Files, base: str) -> tuple[str, list[tuple[Path, str]]]:
    """The sub-folder behind outer ones that mean nothing, and the tables on the way."""
    found = [(table, base) for table in files.tables(base)]
    while True:
        images = files.below(base)
        tops = _tops(images, base)
        if len(tops) != 1 or _direct(images, base) or tops[0].lower() not in _WRAPPERS:
            return base, found
        base = f"{base}{tops[0]}/"
        found += [(table, base) for table in files.tables(base)]


def _tops(images: Iterable[str], base: str) -> list[str]:
    """The sub-folders right in one, of those that hold images."""
    return sorted({rest.split("/")[0] for name in images if "/" in (rest := name.removeprefix(base))})


def _direct(images: Iterable[str], base: str) -> list[str]:
    return [name for name in images if "/" not in name.removeprefix(base)]


def _split_by_tables(whole: _Part, given: Mapping[str, tuple[Path, str]]) -> list[_Part]:
    return [_Part(split, whole.images, whole.base, [table], own=False) for split, table in given.items()]


def _checked(part: _Part, where: Path) -> _Part:
    """Raises DataError of a part with several tables, or with sub-folders that nothing but a guess makes classes."""
    if len(part.tables) > 1:
        names = ", ".join(path.name for path, _ in part.tables)
        raise DataError(f"{where}: found {names}; expected one table of the images, or one a split")
    tops = _tops(part.images, part.base)
    odd = [top for top in tops if top.lower() in _NO_CLASSES or split_of(top)]
    if odd and not part.tables:
        others = [f"{top}/" for top in tops if top not in odd] + ["images"] * bool(_direct(part.images, part.base))
        found = ", ".join(f"{top}/" for top in odd)
        raise DataError(
            f"{where}: found {found} beside {', '.join(others) or 'one another'}, which to other tools is no class; "
            "expected classes alone, or train/ and test/ alone; data.layout: classes takes every sub-folder for a class"
        )
    return part


def _described(part: _Part, files: Files, locator: Locator, keys: Keys) -> list[Item]:
    where = files.folder / part.base
    if part.tables:
        ((table, base),) = part.tables
        return _by_table(part, table, base, locator, keys)
    texts = sidecars.captions(part.images, files.side_files)
    tops, direct = _tops(part.images, part.base), _direct(part.images, part.base)
    kohya = [_KOHYA.fullmatch(top) for top in tops]
    if tops and not direct and all(kohya) and (texts or len(tops) == 1):
        return _by_repeats(part, texts)
    if not texts:
        return _by_class(part, where) if tops else [Described(name, path) for name, path in part.images.items()]
    sidecars.refuse_boxes(texts, where, _WITHOUT)
    are_shards = all(_SHARD.fullmatch(top) for top in tops)
    items = _by_class(part, where) if tops and not are_shards else [Described(n, p) for n, p in part.images.items()]
    return [_with_text(item, texts) if isinstance(item, Described) else item for item in items]


def _by_class(part: _Part, where: Path) -> list[Item]:
    if not _tops(part.images, part.base):
        raise DataError(f"{where}: {len(part.images)} images lie directly in it; expected class sub-folders")
    return [
        Described(name, path, label=composed(rest.split("/")[0]))
        if "/" in (rest := name.removeprefix(part.base))
        else Rejected(path=name, reason="lies outside the class sub-folders")
        for name, path in part.images.items()
    ]


def _by_table(part: _Part, table: Path, base: str, locator: Locator, keys: Keys) -> list[Item]:
    lines = list(tables.parse(table, keys))
    said = {name for line in lines for name in line}
    has_caption, has_label = "caption" in said, "label" in said
    keys.refuse_unknown(said, functools.partial(tables.columns_of, table), table)
    if not has_caption and not has_label:
        if table.name.lower() == tables.STYLEGAN and not lines:  # its way to say that there are no classes
            return [Described(name, path) for name, path in part.images.items()]
        raise DataError(
            f"{table}: no line has a caption or label; expected one of {', '.join((*keys.captions, keys.label))}, or "
            f"data.caption_key or data.label_key to name a column; found {tables.listed(tables.columns_of(table))}"
        )
    items: list[Item] = []
    for line in lines:
        name, problem = locator.find(line["file"], base)
        is_known = name in part.images
        if not is_known and part.shared and (not problem or part.name != "train"):
            continue  # of another split; what nobody has is told with the first
        if not problem and not is_known:
            problem = f"lies outside {part.base}, which {table.name} describes"
        for column, wanted in (("caption", has_caption), ("label", has_label), ("speaker", bool(keys.speaker))):
            problem = problem or (
                f"its line in {table.name} has no {column}" if wanted and column not in line else None
            )
        if problem:
            items.append(Rejected(path=name, reason=problem))
        else:
            items.append(Described(name, part.images[name], **{one: line[one] for one in line if one != "file"}))
    named = {name_of(item) for item in items}
    if part.own:
        unnamed = f"no line of {table.name} names it"
        items += [Rejected(path=name, reason=unnamed) for name in part.images if name not in named]
    return sorted(items, key=name_of)


def _unnamed(parts: list[_Part], found: Mapping[str, list[Item]]) -> list[Item]:
    """The images that lie among those of several splits and that no split's table names."""
    named = {name_of(item) for items in found.values() for item in items}
    among = [part for part in parts if not part.own]
    names = " or ".join(dict.fromkeys(table.name for part in among for table, _ in part.tables))
    lying = dict.fromkeys(name for part in among for name in part.images)
    return [Rejected(path=name, reason=f"no line of {names} names it") for name in lying if name not in named]


def _by_repeats(part: _Part, texts: Mapping[str, str]) -> list[Item]:
    """kohya-ss's folders: `10_a girl` repeats its images ten times an epoch; those without a text have the folder's
    words. Here the repeats count against one another."""
    found = {name: _KOHYA.fullmatch(name.removeprefix(part.base).split("/")[0]) for name in part.images}
    common = math.gcd(*(int(match[1]) for match in found.values()))
    return [
        Described(name, part.images[name], None, texts.get(name, match[2]), int(match[1]) // common)
        for name, match in found.items()
    ]


def _with_text(item: Described, texts: Mapping[str, str]) -> Item:
    if item.name not in texts:
        return Rejected(path=item.name, reason="has no text beside it, as other images have")
    return Described(item.name, item.path, item.label, texts[item.name])


def name_of(item: Item) -> str:
    """An item's path in the folder."""
    return item.name if isinstance(item, Described) else item.path


def refuse_unlike(found: Mapping[str, list[Item]], where: Path) -> None:
    """Raises DataError of splits that share an image, are described in different ways, or whose classes differ."""
    used = {name: items for name, items in found.items() if not (name == "val" and "test" in found)}
    kinds, seen = {}, {}
    for split, items in used.items():
        described = [item for item in items if isinstance(item, Described)]
        for item in described:
            if seen.setdefault(item.name, split) != split:
                raise DataError(f"{where / item.name}: is in two splits, {seen[item.name]} and {split}; expected one")
        if described:
            first = described[0]
            kinds[split] = (first.label is not None, first.caption is not None)
    if len(set(kinds.values())) > 1:
        words = {split: _kind(*kind) for split, kind in kinds.items()}
        told = ", ".join(f"those of {split} have {kind}" for split, kind in words.items())
        raise DataError(f"{where}: images of all splits must be described alike; {told}")
    classes = {split: {item.label for item in items if isinstance(item, Described)} for split, items in used.items()}
    for split, names in classes.items():
        if "train" in classes and (more := sorted(filter(None, names - classes["train"]))):
            raise DataError(f"{where}: the {split} split has classes that train has not: {', '.join(more[:5])}")


def _kind(has_label: bool, has_caption: bool) -> str:
    return " and ".join(filter(None, [has_label and "classes", has_caption and "captions"])) or "neither class nor text"
