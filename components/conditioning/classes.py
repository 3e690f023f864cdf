"""What a prompt asks of a sampler: a class of its data, by name or by number."""

from __future__ import annotations

import re
from collections.abc import Sequence

from components.errors import SamplerError


def class_of(prompt: str, classes: Sequence[str]) -> int:
    """The number of the class that a prompt names: by the class's name or number, or by naming exactly one class among
    other words ("a handwritten seven"). Case and surrounding space do not matter.

    Raises SamplerError listing the classes if it names none, or more than one.
    """
    text = prompt.strip().casefold()
    names = [name.casefold() for name in classes]
    if text in names:
        return names.index(text)
    if re.fullmatch(r"\d{1,9}", text) and int(text) < len(names):
        return int(text)
    mentioned = [number for number, name in enumerate(names) if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    if len(mentioned) == 1:
        return mentioned[0]
    problem = "names more than one class" if mentioned else "names no class"
    raise SamplerError(f"prompt: {prompt[:80]!r} {problem}; expected one of {', '.join(classes)}, or its number")
