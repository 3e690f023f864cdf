"""Registry of the media: the files of this folder. `medium: image` is `MEDIUM` of `image.py`.

A new medium is a file here. Nothing outside this folder knows how a row of it is stored, shown or written.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from components.data.media.base import Medium
from components.errors import DataError


def medium_names() -> tuple[str, ...]:
    """Names of all media in alphabetical order, read off this folder's files; none is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


@functools.cache
def medium(name: str, where: str = "medium", rate: float = 0.0) -> Medium:
    """A medium at a rate, its usual one if 0. Raises DataError, naming `where`, if there is no such medium."""
    known = medium_names()
    if name not in known:
        raise DataError(f"{where}: expected one of {', '.join(known)}, found {name!r}")
    found = importlib.import_module(f"{__name__}.{name}").MEDIUM
    return found.at(rate) if rate else found


__all__ = ["Medium", "medium", "medium_names"]
