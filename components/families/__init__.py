"""Registry of the model families: the files of this folder. `family: dcgan` is the class `Model` of `dcgan.py`.

A family is imported when it is asked for, so that a program loads only the networks it works with.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

from components.errors import ConfigError

if TYPE_CHECKING:
    from components.families.base import Family


@functools.cache
def family_names() -> tuple[str, ...]:
    """Names of all families in alphabetical order, read off this folder's files; none is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


def family_class(name: str, where: str = "family") -> type[Family]:
    """Returns the class `Model` of `components/families/<name>.py`. Raises ConfigError, naming `where`, if there is no
    such family."""
    known = family_names()
    if name not in known:
        nearest = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ConfigError(f"{where}: expected one of {', '.join(known)}, found {name!r}{hint}")
    return importlib.import_module(f"{__name__}.{name}").Model


def family_name(family: type[Family]) -> str:
    """The name that params.yaml knows a family by: its module's."""
    return family.__module__.rpartition(".")[2]
