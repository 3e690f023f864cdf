"""Tables that describe the images of a folder: a .jsonl, .csv or .tsv with a line an image, or StyleGAN's dataset.json.

A line names its image under one of FILE_KEYS, relative to the table's folder or to the whole one, and says a caption
under one of CAPTION_KEYS, a class under data.label_key, or both. Keys are compared without case and outer space.
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
from collections.abc import Iterator, Mapping
from pathlib import Path

from components.errors import DataError

FILE_KEYS = ("file_name", "image", "file", "filename", "image_path", "path", "filepath", "image_name", "image_file")
CAPTION_KEYS = ("caption", "text", "prompt", "description", "comment")
SUFFIXES = {".jsonl", ".csv", ".tsv"}
STYLEGAN = "dataset.json"  # {"labels": [["00000/img.png", 6], ...] or null}
# files by which other tools describe images, and which mean nothing here
_FOREIGN = re.compile(
    r"(^|[_.-])(captions?|metadata|annotations?|instances|labels?|dataset|meta_(cap|lat))([_.-]|\d|$)", re.IGNORECASE
)
_UTF8 = "utf-8-sig"  # with a byte order mark or without
_DELIMITERS = ",;\t|"

Line = dict[str, str]
"""A line of a table: `file`, and `caption`, `label`, `speaker` where it has them."""


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


def parse(table: Path, label_key: str, speaker_key: str | None = None) -> Iterator[Line]:
    """Each line of a table. Raises DataError naming the line that does not name an image."""
    if table.name.lower() == STYLEGAN:
        rows: Iterator[tuple[str, object]] = _stylegan_rows(table)
    else:
        rows = _json_lines(table) if table.suffix.lower() == ".jsonl" else _csv_rows(table)
    for where, content in rows:
        if not isinstance(content, dict):
            raise DataError(f"{where}: expected an object with one of {', '.join(FILE_KEYS)}, found {content!r:.80}")
        content = plain_keys(content)
        file = _first(content, FILE_KEYS)
        if not isinstance(file, str) or not file:
            raise DataError(
                f"{where}: expected the image's path under one of {', '.join(FILE_KEYS)}, found {file!r:.80}"
            )
        yield {"file": file, **description(content, where, label_key, speaker_key)}


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


def description(content: Mapping[str, object], where: str, label_key: str, speaker_key: str | None = None) -> Line:
    """What an object of plain keys says of an image. Raises DataError, naming `where`, of what cannot be a caption or a
    name."""
    found = {}
    caption = _first(content, CAPTION_KEYS)
    if caption is not None:
        # a zero byte would end the stored caption; lone surrogates have no UTF-8
        if not isinstance(caption, str) or "\0" in caption or caption.encode("utf-8", "replace").decode() != caption:
            raise DataError(f"{where}: expected the caption to be text, found {caption!r:.80}")
        found["caption"] = caption
    for name, key in {"label": label_key, "speaker": speaker_key}.items():
        value = content.get(plain(key)) if key else None
        if value is not None:
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise DataError(f"{where}: expected the {name} to be a name or number, found {value!r:.80}")
            found[name] = str(value)
    return found


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
        return name, "names more than one file" if found else self._why_not(name)

    def _ending(self, name: str) -> list[str]:
        last = name.rsplit("/", 1)[-1]
        return [place for place in self._endings.get(last, []) if composed(place).endswith(f"/{name}")]

    def _why_not(self, name: str) -> str:
        alike = self._roughly.get(name.replace("\\", "/").rsplit("/", 1)[-1].casefold(), [])
        return "no such image in the folder" + (f"; there is {alike[0]}" if alike else "")
