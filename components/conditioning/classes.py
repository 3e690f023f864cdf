"""Conditioning on classes, and the class that a prompt names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.errors import SamplerError
from components.nets.blocks import class_weights, embedded
from components.sampling.blends import lerp
from components.sampling.requests import Blend


def class_of(prompt: str, classes: Sequence[str]) -> int:
    """The number of the class that a prompt names: by the class's name or number, or by naming exactly one class among
    other words ("a handwritten seven"; of names within names the longest). Case, accents' Unicode form, and whether
    words are apart by spaces, underscores or hyphens do not matter. A name goes before a number.

    Raises SamplerError listing the classes if it names none, and those that it may mean if more than one.
    """
    text, names = _plain(prompt), [_plain(name) for name in classes]
    found = [number for number, name in enumerate(names) if name == text]
    if not found and re.fullmatch(r"\d{1,9}", text):
        found = [number for number, name in enumerate(names) if name.isdecimal() and int(name) == int(text)]
        if int(text) < len(names) and int(text) not in found:
            found.append(int(text))
    found = found or _mentioned(text, names)
    if len(found) == 1:
        return found[0]
    problem = "names no class"
    if found:
        problem = f"names more than one class: {' or '.join(f'{classes[one]} (number {one})' for one in found)}"
    raise SamplerError(f"prompt: {prompt[:80]!r} {problem}; expected one of {', '.join(classes)}, or its number")


def _plain(text: str) -> str:
    """As names are compared."""
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)|_", " ", unicodedata.normalize("NFC", text).casefold()).strip()


def _mentioned(text: str, names: Sequence[str]) -> list[int]:
    """The names that stand in a text as words, and not only as a part of a longer one."""
    spans = [
        (*match.span(), number)
        for number, name in enumerate(names)
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)
        if name
    ]
    alone = (
        number
        for start, end, number in spans
        if not any(a <= start and end <= b and b - a > end - start for a, b, _ in spans)
    )
    return sorted(set(alone))


def told_of(columns: Mapping[str, Tensor]) -> Tensor | None:
    """What steers rows of a data set, as likelihoods take it: classes (B,), or with speakers (B, 2); None of rows
    without classes."""
    label, speaker = columns.get("label"), columns.get("speaker")
    return label if label is None or speaker is None else torch.stack([label, speaker], 1)


def apart(told: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Classes and speakers, (B,) each, of what `told_of` gives; None for what it does not hold."""
    if told is None or told.ndim == 1:
        return told, None
    return tuple(told.unbind(1))


def blended_label(label: Tensor, blend: Blend | None, num_classes: int) -> Tensor:
    """Classes (B,) int64 and, on the way to a blend's, weights (B, num_classes) of points between: what `embedded`
    takes."""
    if blend is None or blend.label is None:
        return label
    return label_between(label, blend.label, blend.share, num_classes)


def label_between(label: Tensor, other: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Weights (B, num_classes) of points between classes (B,) and others, `share` (B,) of the way."""
    return lerp(class_weights(label, num_classes), class_weights(other, num_classes), share)


class ClassConditioner(nn.Module):
    """Tells a backbone a class as a label for it to embed and, with a `context_dim`, as one token to attend to.

    Class number `num_classes` stands for "no class", as label dropout trains it (Ho and Salimans 2022); `rows` counts
    it. A label is (B,) int64, or (B, rows) weights for what lies between classes. With speakers, which have rows of
    their own behind the classes' and one for "no speaker", it is always weights, and a row's class and speaker are
    embedded by a sum: `together`.
    """

    def __init__(self, num_classes: int, context_dim: int = 0, num_speakers: int = 0):
        super().__init__()
        self.null, self.no_speaker = num_classes, num_speakers
        self.rows = num_classes + 1 + (num_speakers + 1 if num_speakers else 0)
        self.context = nn.Embedding(self.rows, context_dim) if context_dim else None

    def forward(self, label: Tensor) -> dict[str, Tensor]:
        if self.context is None:
            return {"label": label}
        return {"context": embedded(self.context, label)[:, None], "label": label}

    def together(self, label: Tensor, speaker: Tensor | None) -> Tensor:
        """Classes (B,) and speakers (B,), None for nobody, as a label of this conditioner."""
        if not self.no_speaker:
            return label
        speaker = torch.full_like(label, self.no_speaker) if speaker is None else speaker
        return self.weights(label) + F.one_hot(self.null + 1 + speaker, self.rows).float()

    def weights(self, label: Tensor) -> Tensor:
        """A label as weights (B, rows)."""
        return class_weights(label, self.rows)
