"""Tables that describe the images of a folder: a .jsonl, .csv or .tsv with a line an image, or StyleGAN's dataset.json.

A line names its image under one of FILE_KEYS, relative to the table's folder or to the whole one, and says a caption
under one of CAPTION_KEYS or data.caption_key, a class under data.label_key, or both. Keys are compared without case and
outer space. A blank caption is none; of several, which come as a list, the first is taken.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import io
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError

FILE_KEYS = ("file_name", "image", "file", "filename", "image_path", "path", "filepath", "image_name", "image_file")
CAPTION_KEYS = ("caption", "captions", "text", "txt", "prompt", "description", "comment", "alt_text")
SUFFIXES = {".jsonl", ".csv", ".tsv"}
STYLEGAN = "dataset.json"  # {"labels": [["00000/img.png", 6], ...] or null}
# files by which other tools describe images, and which mean nothing here
_FOREIGN = re.compile(
    r"(^|[_.-])(captions?|metadata|annotations?|instances|labels?|dataset|meta_(cap|lat))([_.-]|\d|$)", re.IGNORECASE
)
_UTF8 = "utf-8-sig"  # with a byte order mark or without
_DELIMITERS = ",;\t|"
_LISTED = 20  # columns that a message names

Line = dict[str, str | int]
"""A line of a table: `file`, and `caption`, `label`, `speaker` where it has them; `captions`: how many, of several."""


@dataclass(frozen=True)
class Keys:
    """The columns that say class, caption and speaker, as the block `data` names them. A caption without a name is
    under one of CAPTION_KEYS; speakers without one are not told apart."""

    label: str = "label"
    caption: str | None = None
    speaker: str | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        """Those that may hold a caption, the preferred one first, as keys are compared."""
        return CAPTION_KEYS if self.caption is None else (plain(self.caption),)

    def refuse_unknown(self, found: Collection[str], columns: Callable[[], Iterable[str]], where: object) -> None:
        """Raises DataError, naming `where` and the `columns` there, of a caption or class whose column the user names,
        and that is not among what is `found` of images."""
        named = {"caption": self.caption, "label": self.label if self.label != Keys().label else None}
        for name, key in named.items():
            if key is not None and name not in found:
                raise DataError(
                    f"{where}: data.{name}_key {key}: nothing says a {name} there; found {listed(columns())}"
                )


def listed(columns: Iterable[str]) -> str:
    """The first columns, for messages."""
    every = list(columns)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(f"{name:.40}" for name in every[:_LISTED]) + more if every else "no columns"


def is_table(path: Path) -> bool:
    """Whether a side file describes images: by its name, of a .csv or .tsv by its header too, which must name a column
    of files, and so of a captions.txt."""
    if path.suffix.lower() == ".jsonl":
        return True
    if path.name.lower() == STYLEGAN:
        return _stylegan(path) is not None
    has_columns = path.suffix.lower() in SUFFIXES or path.name.lower() == "captions.txt"
    return has_columns and _delimiter(path) is not None


def is_foreign(path: Path) -> bool:
    """Whether a side file that is no table looks as if it described images, such as COCO's annotations."""
    return path.suffix.lower() in {".json", *SUFFIXES} and bool(_FOREIGN.search(path.stem)) and not is_table(path)


def _contents(table: Path) -> Iterator[tuple[str, object]]:
    """What each line holds, with where it stands."""
    if table.name.lower() == STYLEGAN:
        return _stylegan_rows(table)
    return _json_lines(table) if table.suffix.lower() == ".jsonl" else _csv_rows(table)


def columns_of(table: Path) -> tuple[str, ...]:
    """The names of a table's columns, or the keys of its first lines, as they are written."""
    lines = itertools.islice(_contents(table), 100)
    return tuple(dict.fromkeys(str(key) for _, content in lines if isinstance(content, dict) for key in content))


def parse(table: Path, keys: Keys) -> Iterator[Line]:
    """Each line of a table. Raises DataError naming the line that does not name an image."""
    for where, content in _contents(table):
        if not isinstance(content, dict):
            raise DataError(f"{where}: expected an object with one of {', '.join(FILE_KEYS)}, found {content!r:.80}")
        content = plain_keys(content)
        file = _first(content, FILE_KEYS)
        if not isinstance(file, str) or not file:
            raise DataError(
                f"{where}: expected the image's path under one of {', '.join(FILE_KEYS)}, found {file!r:.80}"
            )
        yield {"file": file, **description(content, where, keys)}


def plain_keys(content: Mapping[object, object]) -> dict[str, object]:
    """An object by its keys as they are compared."""
    return {plain(str(key)): value for key, value in content.items()}


def plain(key: str) -> str:
    return key.strip().casefold()


def text_of(file: Path) -> str:
    """A text file's content. Raises DataError of one that cannot be read, or is not UTF-8."""
    with _told_unless_text(file):
        return file.read_text(encoding=_UTF8)


@contextlib.contextmanager
def _told_unless_text(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from None


def _first_line(file: Path) -> str:
    with _told_unless_text(file), file.open(encoding=_UTF8) as lines:
        return lines.readline().removesuffix("\n")


def _json_lines(table: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text_of(table).split("\n"), start=1):
        where = f"{table}: line {number}"
        if not line.strip():
            continue
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON ({error})") from None


def _delimiter(table: Path) -> str | None:
    """What parts the columns of a header with a column of files; None of a file without such a header."""
    header = _first_line(table)
    for delimiter in _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        if set(map(plain, names)) & set(FILE_KEYS):
            return delimiter
    return None


def _csv_rows(table: Path) -> Iterator[tuple[str, object]]:
    # lines that csv itself parts, since a text may hold other line breaks
    lines = _Lines(io.StringIO(text_of(table), newline=""))
    reader = csv.DictReader(lines, delimiter=_delimiter(table) or ",", skipinitialspace=True)
    for row in _whole_rows(reader, lines, table):
        where = f"{table}: line {reader.line_num}"
        if None in row or None in row.values():
            columns = ", ".join(reader.fieldnames or ())
            raise DataError(f"{where}: expected {columns}; a text with the delimiter in it wants quotation marks")
        yield where, {name: value.strip() or None for name, value in row.items()}


class _Lines:
    """The lines of a file, and whether more were asked for than there are: a row then ends because the file does."""

    def __init__(self, file: io.StringIO):
        self._file, self.are_wanting = file, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if line := self._file.readline():
            return line
        self.are_wanting = True
        raise StopIteration


def _whole_rows(reader: csv.DictReader, lines: _Lines, table: Path) -> Iterator[dict]:
    """Raises DataError of a quotation mark that is never closed, behind which all lines would be one text."""
    begun = 1
    try:
        for row in itertools.chain([reader.fieldnames or []], reader):  # the header is one, too
            if row and lines.are_wanting:
                raise DataError(f"{table}: line {begun}: a quotation mark that is left open")
            if begun > 1:
                yield row
            begun = reader.line_num + 1
    except csv.Error as error:
        told = "a quotation mark that is left open, or too long a text"
        raise DataError(f"{table}: line {begun}: {told if 'field larger' in str(error) else error}") from None


def _stylegan(table: Path) -> dict | None:
    try:
        content = json.loads(table.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "labels" in content else None


def _stylegan_rows(table: Path) -> Iterator[tuple[str, object]]:
    for number, pair in enumerate((_stylegan(table) or {})["labels"] or (), start=1):
        where = f"{table}: label {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{where}: expected a file and its class, found {pair!r:.80}")
        yield where, {"file": pair[0], "label": pair[1]}


def description(content: Mapping[str, object], where: str, keys: Keys) -> Line:
    """What an object of plain keys says of an image. Raises DataError, naming `where`, of what cannot be a caption or a
    name."""
    found: Line = {}
    if captions := next(filter(None, (_captions(content.get(key), where) for key in keys.captions)), None):
        found["caption"] = captions[0]
        if len(captions) > 1:
            found["captions"] = len(captions)
    for name, key in {"label": keys.label, "speaker": keys.speaker}.items():
        value = content.get(plain(key)) if key else None
        if value is not None:
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise DataError(f"{where}: expected the {name} to be a name or number, found {value!r:.80}")
            found[name] = str(value)
    return found


def _captions(value: object, where: str) -> list[str]:
    """The captions that a column says, one or a list of them, without blank ones."""
    found = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    for text in found:
        # a zero byte would end the stored caption; lone surrogates have no UTF-8
        if not isinstance(text, str) or "\0" in text or text.encode("utf-8", "replace").decode() != text:
            raise DataError(f"{where}: expected the caption to be text, found {value!r:.80}")
    return [text for text in found if text.strip()]


def _first(content: Mapping[str, object], keys: tuple[str, ...]) -> object:
    return next((content[key] for key in keys if content.get(key) is not None), None)


def composed(name: str) -> str:
    """A name in Unicode's composed form: what one system writes decomposed another finds."""
    return unicodedata.normalize("NFC", name)


class Locator:
    """Finds images as tables write them: in any Unicode form, with slashes either way, absolute, or by the end of the
    path where exactly one file's path ends so."""

    def __init__(self, images: Mapping[str, Path]):
        self._names: dict[str, list[str]] = collections.defaultdict(list)
        self._endings: dict[str, list[str]] = collections.defaultdict(list)
        self._roughly: dict[str, list[str]] = collections.defaultdict(list)
        for name in images:
            last = composed(name).rsplit("/", 1)[-1]
            self._names[composed(name)].append(name)
            self._endings[last].append(name)
            for alike in {last.casefold(), last.rsplit(".", 1)[0].casefold()}:
                self._roughly[alike].append(name)

    def find(self, written: str, base: str = "") -> tuple[str, str | None]:
        """-> (its name, None) or (as written, what is wrong). `base`: the table's folder, with a slash, or empty."""
        plain = written.encode("utf-8", "backslashreplace").decode()
        readings = dict.fromkeys(composed(os.path.normpath(one)) for one in (plain, plain.replace("\\", "/")))
        for name in readings:
            for place in dict.fromkeys((f"{base}{name}", name)):
                if len(found := self._names.get(place, [])) == 1:
                    return found[0], None
        found = []
        for name in readings:
            tail = name.split("/")
            found += self._ending(name)
            # of an absolute path what it and the folder share, as long as there is any
            is_absolute = name.startswith("/") or re.match(r"[A-Za-z]:/", name)
            while is_absolute and not found and len(tail) > 1:
                tail = tail[1:]
                found += self._names.get("/".join(tail), []) or self._ending("/".join(tail))
            if len(found) == 1:
                return found[0], None
        name = next(iter(readings))
        several = f"names more than one file: {', '.join(sorted(set(found))[:3])}"
        return name, several if found else self._why_not(name)

    def _ending(self, name: str) -> list[str]:
        last = name.rsplit("/", 1)[-1]
        return [place for place in self._endings.get(last, []) if composed(place).endswith(f"/{name}")]

    def _why_not(self, name: str) -> str:
        alike = self._roughly.get(name.replace("\\", "/").rsplit("/", 1)[-1].casefold(), [])
        return "no such image in the folder" + (f"; there is {alike[0]}" if alike else "")
