"""Parquet with an image's bytes in one column and its caption or class in others, as the Hugging Face hub keeps data
sets: `image` may be a struct of bytes and path, a class a number that the schema's metadata name.

The only module here that knows pyarrow. Columns of texts are read once, images a few rows at a time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.data.dataset import Rejected
from components.errors import DataError
from components.sources import DataConfig, tables
from components.sources.layouts import Described, Item
from components.sources.tables import plain

NAME = "parquet"
IMAGE_KEYS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "content", "picture")
IMAGE_KEYS += ("audio", "video")  # of other media
_AT_ONCE, _LINES = 32, 4096  # rows of images, and of texts, read together


def items(path: Path, name: str, config: DataConfig) -> Iterator[Item]:
    """The rows of a file in its order. Raises DataError of a file without a column of images."""
    row = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            _image_column(file, path)
            for content in _described(file, config):
                yield _item(path, f"{name}/{row}", row, content, config)
                row += 1
    except (pa.ArrowException, OSError) as error:
        yield Rejected(path=name, reason=f"cannot be read as Parquet beyond its first {row} rows ({_line(error)})")


def columns_of(path: Path, config: DataConfig) -> tuple[str, ...]:
    """The names of a file's columns, but that of its images; none of one that cannot be read."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            images = _image_column(file, path).partition(".")[0]
            return tuple(name for name in file.schema_arrow.names if name != images)
    except (pa.ArrowException, OSError):
        return ()


def _described(file: pq.ParquetFile, config: DataConfig) -> Iterator[dict[str, object]]:
    """What each row says besides its image, by column in lower case."""
    keys = config.keys
    wanted = {*keys.captions, plain(keys.label), plain(keys.speaker or "")}
    columns = [column for column in file.schema_arrow.names if plain(column) in wanted]
    classes = _class_names(file.schema_arrow)
    for lines in _lines(file, columns):
        for line in lines:
            yield {plain(column): _named(value, classes.get(column)) for column, value in line.items()}


def _item(path: Path, name: str, row: int, content: dict[str, object], config: DataConfig) -> Item:
    try:
        told = tables.description(content, "its row", config.keys)
        return Described(name, path, **told, start=row)
    except DataError as error:
        return Rejected(path=name, reason=str(error))


def contents(part: list[Item]) -> Iterator[tuple[Item, io.BytesIO | None]]:
    """Each item with its bytes, file by file; those that are left out first."""
    wanted: dict[Path, dict[int, list[Described]]] = {}
    for item in part:
        if isinstance(item, Rejected):
            yield item, None
        else:
            wanted.setdefault(item.path, {}).setdefault(item.start, []).append(item)
    for path, rows in wanted.items():
        try:
            for row, data in _bytes(path, max(rows)):
                for item in rows.pop(row, ()):
                    yield _with_bytes(item, data)
        except (pa.ArrowException, OSError) as error:
            for item in (item for left in rows.values() for item in left):
                yield Rejected(path=item.name, reason=f"its file cannot be read so far ({_line(error)})"), None


def _bytes(path: Path, last: int) -> Iterator[tuple[int, bytes | None]]:
    """The rows of a file up to `last`, each by its number."""
    row = 0
    with pq.ParquetFile(path, memory_map=True) as file:
        for batch in file.iter_batches(_AT_ONCE, columns=[_image_column(file, path)]):
            values = batch.column(0)
            values = values.flatten()[0] if pa.types.is_struct(values.type) else values
            for value in values:
                yield row, value.as_py()
                row += 1
            if row > last:
                return


def _with_bytes(item: Described, data: bytes | None) -> tuple[Item, io.BytesIO | None]:
    if data is None:
        return Rejected(path=item.name, reason="its row holds no bytes of an image"), None
    return item, io.BytesIO(data)


def _image_column(file: pq.ParquetFile, path: Path) -> str:
    """The column of bytes that is named as one of images, or the only one; of a struct its field `bytes`."""
    found = {}
    for field in file.schema_arrow:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            found[field.name] = f"{field.name}.bytes"
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            found[field.name] = field.name
    named = [column for key in IMAGE_KEYS for column in found if plain(column) == key]
    if not named and len(found) != 1:
        raise DataError(
            f"{path}: expected a column of images' bytes, {IMAGE_KEYS[0]} or the like, found columns "
            f"{', '.join(file.schema_arrow.names)}"
        )
    return found[named[0]] if named else next(iter(found.values()))


def _lines(file: pq.ParquetFile, columns: list[str]) -> Iterator[list[dict[str, object]]]:
    """The rows of some columns, many at a time; as many empty ones where there are no columns."""
    if columns:
        for batch in file.iter_batches(_LINES, columns=columns):
            yield batch.to_pylist()
    else:
        for start in range(0, file.metadata.num_rows, _LINES):
            yield [{}] * min(_LINES, file.metadata.num_rows - start)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of numbered classes by column, as the library `datasets` puts them into the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: one["names"] for name, one in features.items() if _is_class(one)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _is_class(feature: object) -> bool:
    # a feature of lists is a list there
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel"


def _named(value: object, names: list[str] | None) -> object:
    """A class by its name, where it has one; a number below 0 stands for no class."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
