"""The media: one file each, found by its name in this folder; `MEDIUM` there is what it brings.

A new medium is a file here. Nothing outside this folder knows how a row of it is stored, shown or written.
"""

from __future__ import annotations

import importlib
import pkgutil

from components.data.media.base import Medium
from components.errors import DataError

MEDIA: dict[str, Medium] = {}  # those opened so far, by name; tests may add their own


def names() -> tuple[str, ...]:
    """Of all media that there are."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    return tuple(sorted({*found, *MEDIA}))


def medium(name: str, where: str = "medium") -> Medium:
    """Raises DataError, naming `where`, if there is no such medium."""
    if name not in MEDIA:
        if name not in names():
            raise DataError(f"{where}: expected one of {', '.join(names())}, found {name!r}")
        MEDIA[name] = importlib.import_module(f"{__name__}.{name}").MEDIUM
    return MEDIA[name]


__all__ = ["MEDIA", "Medium", "medium", "names"]
