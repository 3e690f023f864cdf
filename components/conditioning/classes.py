"""Conditioning on classes, and the class that a prompt names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn

from components.errors import SamplerError
from components.nets.unet import embedded


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


class ClassConditioner(nn.Module):
    """Tells a backbone a class as a label for it to embed and, with a `context_dim`, as one token to attend to.

    Class number `num_classes` stands for "no class", as label dropout trains it (Ho and Salimans 2022); `rows` counts
    it. A label is (B,) int64, or (B, rows) weights for what lies between classes.
    """

    def __init__(self, num_classes: int, context_dim: int = 0):
        super().__init__()
        self.null, self.rows = num_classes, num_classes + 1
        self.context = nn.Embedding(self.rows, context_dim) if context_dim else None

    def forward(self, label: Tensor) -> dict[str, Tensor]:
        if self.context is None:
            return {"label": label}
        return {"context": embedded(self.context, label)[:, None], "label": label}
