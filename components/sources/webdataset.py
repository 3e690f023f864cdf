"""WebDataset's tars (Aizman, Maltby and Breuel 2019): files that lie one after another and share a name up to its
first dot are of one sample: an image, and what its .txt, .json or .cls says of it.

The headers and small texts are read once, images where they lie when their turn comes.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from components.data.dataset import Rejected
from components.errors import DataError
from components.sources import DataConfig, tables
from components.sources.layouts import Described, Item
from components.sources.sidecars import first_line
from components.sources.tables import CAPTION_KEYS, Keys, Line

NAME = "webdataset"
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # the sample's name, and which of its files it is
_LABELS, _OBJECTS = ("cls",), ("json",)
# what other tools put beside an image: arrays, pickles, numbers
_OTHERS = {"npy", "npz", "pth", "pt", "pyd", "pickle", "pkl", "ten", "mp", "msg", "cbor", "index", "inx", "id", "cls2"}
_MOST_TEXT = 1 << 20  # bytes of a caption or object
_FIRST = 20  # files of a tar that the first sample is among


def items(path: Path, name: str, config: DataConfig) -> Iterator[Item]:
    """The samples of a tar in its order."""
    num, sample, problem = 0, None, None
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # it would keep every header
                match = _KEY.fullmatch(member.name.removeprefix("./"))
                if not member.isfile() or match is None:
                    continue
                if sample is not None and sample.key != match[1]:
                    yield sample.item()
                    num, sample = num + 1, None
                sample = sample or _Sample(path, name, match[1], config.keys)
                sample.add(match[2].lower(), member, archive)
            problem = _not_an_end(archive)
    except (tarfile.TarError, OSError, EOFError) as error:
        problem = str(error)
        sample = None  # what it ends within
    if sample is not None:
        yield sample.item()
        num += 1
    if problem is not None:
        compressed = "" if num else "; expected a tar that is not compressed"
        yield Rejected(path=name, reason=f"cannot be read beyond its first {num} samples ({problem}){compressed}")


def columns_of(path: Path, config: DataConfig) -> tuple[str, ...]:
    """What lies beside the first image of a tar: endings of texts, and the keys of an object; none of a tar that cannot
    be read."""
    sample = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in itertools.islice(archive, _FIRST):
                match = _KEY.fullmatch(member.name.removeprefix("./"))
                if member.isfile() and match is not None:
                    sample = sample or _Sample(path, path.name, match[1], config.keys)
                    if sample.key == match[1]:
                        sample.add(match[2].lower(), member, archive)
    except (tarfile.TarError, OSError, EOFError):
        return ()
    return () if sample is None else sample.columns()


def _not_an_end(archive: tarfile.TarFile) -> str | None:
    """What is wrong with where a tar was read to: tarfile takes a damaged header for the end."""
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    return "a damaged header" if block.strip(b"\0") else None


class _Sample:
    """What a tar says of a sample, gathered file by file."""

    def __init__(self, path: Path, archive: str, key: str, keys: Keys):
        self.path, self.key, self.name, self.keys = path, key, f"{archive}/{key}", keys
        named = keys.captions[0]
        self.texts = CAPTION_KEYS if keys.caption is None else (named, f"{named}.txt")
        self.files: dict[str, tuple[int, int]] = {}  # of what may be the image: start and size, by its ending
        self.said: dict[str, bytes] = {}
        self.problem: str | None = None

    def add(self, ending: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        kind = ending.rsplit(".", 1)[-1]
        if ending in self.files or ending in self.said:
            self.problem = f"has two files .{ending}"
        if kind in (*CAPTION_KEYS, *_LABELS, *_OBJECTS) or ending in self.texts:
            if member.size > _MOST_TEXT:
                self.problem = f"its .{ending} has {member.size} bytes, expected at most {_MOST_TEXT}"
            else:
                self.said[ending] = archive.extractfile(member).read()
        elif kind not in _OTHERS:
            self.files[ending] = (member.offset_data, member.size)

    def columns(self) -> tuple[str, ...]:
        """What says something beside the image: endings, and the keys of objects."""
        found: list[str] = []
        for ending, content in self.said.items():
            try:
                found += _object(content.decode("utf-8-sig"), ending) if ending in _OBJECTS else [f".{ending}"]
            except (DataError, UnicodeDecodeError):
                found.append(f".{ending}")
        return tuple(found)

    def item(self) -> Item:
        try:
            if self.problem is not None:
                raise DataError(self.problem)
            if len(self.files) != 1:
                held = ", ".join((*self.files, *self.said)) or "nothing"
                raise DataError(f"expected one file that is no text, found {held}")
            ((start, size),) = self.files.values()
            return Described(self.name, self.path, **self._description(), start=start, size=size)
        except DataError as error:
            return Rejected(path=self.name, reason=str(error))

    def _description(self) -> Line:
        """Caption, label and speaker, where it has them; a .cls and the usual one of several texts before an object."""
        found: Line = {}
        usual = next((ending for ending in self.texts if ending in self.said), None)
        for ending, content in self.said.items():
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise DataError(f"its .{ending} is no text in UTF-8") from None
            if ending in _OBJECTS:
                found = tables.description(_object(text, ending), f"its .{ending}", self.keys) | found
            elif ending == usual:
                found["caption"] = first_line(text, f"its .{ending}")
            elif ending in _LABELS:
                found["label"] = first_line(text, f"its .{ending}")
                if not found["label"]:
                    raise DataError(f"its .{ending} is empty, expected a class")
        return found


def _object(text: str, ending: str) -> dict[str, object]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"its .{ending} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"its .{ending}: expected an object, found {content!r:.80}")
    return tables.plain_keys(content)


def contents(part: list[Item]) -> Iterator[tuple[Item, io.BytesIO | None]]:
    """Each item with its bytes, read where they lie."""
    opened, file = None, None
    try:
        for item in part:
            if isinstance(item, Rejected):
                yield item, None
                continue
            if opened != item.path:
                if file is not None:
                    file.close()
                opened, file = item.path, item.path.open("rb")
            file.seek(item.start)
            data = file.read(item.size)
            if len(data) < item.size:
                yield Rejected(path=item.name, reason="its tar breaks off within it"), None
            else:
                yield item, io.BytesIO(data)
    finally:
        if file is not None:
            file.close()
