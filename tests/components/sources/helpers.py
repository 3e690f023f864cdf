"""Image files, and what a source makes of them."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components import sources
from components.sources import DataConfig


def picture(path: Path, value: int | tuple = 128, size=(20, 16), mode: str = "L", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)
    return path


def config_of(path: Path, **fields) -> DataConfig:
    return DataConfig(source="folder", path=path, **fields)


def items_of(source: sources.Source) -> list:
    return [item for split in source.splits.values() for item in split()]


def rows_of(source: sources.Source) -> list[sources.Row]:
    return list(sources.accepted(items_of(source), [], 0))


def png(value: int, size=(20, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_parquet(
    path: Path, columns: dict[str, object], names: dict[str, list[str]] | None = None, features=None
) -> Path:
    """`names`: of the classes of a column, or `features`: what the hub's library says of all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names is not None:
        features = {name: {"names": given, "_type": "ClassLabel"} for name, given in names.items()}
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path
