"""Image files, and what a source makes of them."""

from pathlib import Path

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
