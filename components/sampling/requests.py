"""Requests to a sampler: seeds, settings and conditions, a row an image, and the one check of whether it takes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from components.config import Strict
from components.errors import SamplerError
from components.shapes import shape_text

BLEND = "blend"  # what a sampler accepts beside the names of Conditions


class Rows:
    """Base of what has rows: tensors, tuples of texts, and parts that have rows themselves; the rest goes for all."""

    def to(self, device: torch.device) -> Self:
        return self._each(lambda values: values.to(device), lambda texts: texts)

    def rows(self, rows: slice) -> Self:
        return self._each(lambda values: values[rows], lambda texts: texts[rows])

    def take(self, rows: Sequence[int]) -> Self:
        """The rows of these numbers, in this order."""
        return self._each(lambda values: values[torch.tensor(rows)], lambda texts: tuple(texts[row] for row in rows))

    def _each(self, of_tensor: Callable[[Tensor], Tensor], of_texts: Callable[[tuple], tuple]) -> Self:
        changed = {}
        for name, value in self.parts().items():
            if isinstance(value, Rows):
                changed[name] = value._each(of_tensor, of_texts)
            elif isinstance(value, Tensor):
                changed[name] = of_tensor(value)
            elif isinstance(value, tuple):
                changed[name] = of_texts(value)
        return replace(self, **changed)

    def parts(self) -> dict[str, Any]:
        """By name, what is there at all."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Source(Rows):
    """Images to start from instead of noise, at the sampler's own size. `images`: (B, C, ...) in [-1, 1]. `strength`
    in (0, 1]: how far up in noise the start lies; small keeps the images, 1 keeps hardly anything. `mask`: (B, 1, ...)
    in [0, 1], 1 where to redraw, 0 where the images' own pixels stay; None redraws everything.

    Raises SamplerError of a strength or shapes that cannot be.
    """

    images: Tensor
    strength: float
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise SamplerError(f"strength: expected above 0 and at most 1, found {self.strength}")
        if self.mask is not None:
            expected = (len(self.images), 1, *self.images.shape[2:])
            if self.mask.shape != expected:
                found = shape_text(self.mask.shape)
                raise SamplerError(f"mask: expected {shape_text(expected)}, to go with the images, found {found}")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Conditions(Rows):
    """What steers the images of a request. A sampler's `accepts` names those that it takes.

    label:            (B,) int64 class numbers; None for no class
    speaker:          (B,) int64 numbers of who speaks; None for nobody in particular
    prompt:           B texts; None for no text
    negative_label:   (B,) int64: the class that guidance leads away from, instead of from no class
    negative_prompt:  B texts, likewise
    source:           images to edit
    first:            (B, C, H, W) in [-1, 1], pictures that films begin with
    low:              (B, C, h, w) in [-1, 1]: smaller images to enlarge
    image:            (B, C, ...) in [-1, 1]: images whose content is to be shown anew
    instead_of:       B texts: what `image` shows, so that it is led from there to the prompt
    embedding:        (B, D) of unit length: what CLIP sees in the images
    size:             (B, 2) int64: height and width of the images, one of the sampler's `sizes`, alike in a request
    """

    label: Tensor | None = None
    speaker: Tensor | None = None
    prompt: tuple[str, ...] | None = None
    negative_label: Tensor | None = None
    negative_prompt: tuple[str, ...] | None = None
    source: Source | None = None
    first: Tensor | None = None
    low: Tensor | None = None
    image: Tensor | None = None
    instead_of: tuple[str, ...] | None = None
    embedding: Tensor | None = None
    size: Tensor | None = None


@dataclass(frozen=True)
class Blend(Rows):
    """The way to other images. `share`: (B,) float in [0, 1], how far: 0 is the request's own, 1 the other's. Seeds
    (B,) int64, classes and texts say what the others differ in; what is None stays."""

    seeds: Tensor | None
    share: Tensor
    label: Tensor | None = None
    prompt: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Request(Rows):
    """What to sample, a row an image. `seeds`: (B,) int64. `settings`: the family's own Settings. `blend`: other seeds,
    classes or texts to go towards."""

    seeds: Tensor
    settings: Strict
    conditions: Conditions = Conditions()
    blend: Blend | None = None

    def split(self, batch_size: int) -> Iterator[Self]:
        """The same images in parts of up to `batch_size`."""
        for start in range(0, len(self.seeds), batch_size):
            yield self.rows(slice(start, start + batch_size))


REFUSALS = {
    "label": "this sampler is not steered by classes",
    "speaker": "this sampler is not steered by speakers",
    "prompt": "this sampler takes no texts",
    "negative_label": "this sampler is not guided away from classes",
    "negative_prompt": "this sampler is not guided away from texts",
    "source": "this sampler draws from noise alone and edits no {rows}",
    "first": "this sampler makes no {rows} that begin with a picture",
    "low": "this sampler enlarges no {rows}",
    "image": "this sampler shows no content of other {rows} anew",
    "instead_of": "this sampler leads no {rows} from one text to another",
    "embedding": "this sampler is not steered by embeddings",
    "size": "this sampler makes {rows} of one size",
    BLEND: "this sampler knows no way between two seeds",
}


class Takes(NamedTuple):
    """What a sampler takes. `accepts`: names of Conditions, and `blend`; `rows`, `shape`: what it makes, as images of
    3x64x64; `sizes`: the sides that it can be asked for; `needs_class`: whether it draws nothing without a class."""

    accepts: Collection[str]
    rows: str
    shape: tuple[int, ...]
    num_classes: int
    num_speakers: int = 0
    sizes: Collection[tuple[int, ...]] = ()
    needs_class: bool = False


def refuse_unfit(request: Request, takes: Takes) -> None:
    """Raises SamplerError naming the first thing in a request that a sampler does not take, or that it lacks."""
    given, blend = request.conditions.parts(), request.blend
    towards = {} if blend is None else {f"{BLEND}: {name}": value for name, value in blend.parts().items()}
    _refuse_unaccepted(given if blend is None else {**given, BLEND: blend}, towards, takes)
    if takes.needs_class and "label" not in given:
        raise SamplerError(f"label: this sampler draws no {takes.rows} without a class; expected one for each seed")
    for name, value in {**given, **towards}.items():
        if len(value) != len(request.seeds):
            raise SamplerError(f"{name}: expected one for each of {len(request.seeds)} seeds, found {len(value)}")
        _refuse_bad_values(name, value, takes)


def _refuse_unaccepted(given: Mapping[str, Any], towards: Mapping[str, Any], takes: Takes) -> None:
    for name, value in given.items():
        if name not in takes.accepts:
            raise SamplerError(f"{name}: {REFUSALS[name].format(rows=takes.rows)}")
        if name in ("source", "image"):
            found = tuple((value.images if name == "source" else value).shape[1:])
            if found != takes.shape:
                expected = shape_text(takes.shape)
                raise SamplerError(f"{name}: expected {takes.rows} {expected}, found {shape_text(found)}")
        if name == "first" and value.shape[1:] != (takes.shape[0], *takes.shape[2:]):
            expected, found = shape_text((takes.shape[0], *takes.shape[2:])), shape_text(value.shape[1:])
            raise SamplerError(f"first: expected pictures {expected}, found {found}")
    for name in towards:
        if (plain := name.removeprefix(f"{BLEND}: ")) in REFUSALS and plain not in takes.accepts:
            raise SamplerError(f"{name}: {REFUSALS[plain]}")


def _refuse_bad_values(name: str, value: Any, takes: Takes) -> None:
    # a guided sampler knows one number more, which stands for no class
    largest = takes.num_classes - 1 + ("negative_label" in takes.accepts)
    if name.endswith("label") and ((value < 0) | (value > largest)).any():
        known = f"class numbers 0 to {takes.num_classes - 1}"
        raise SamplerError(f"{name}: expected {known}, found {value.tolist()}")
    if name == "speaker" and ((value < 0) | (value >= takes.num_speakers)).any():
        raise SamplerError(f"speaker: expected numbers 0 to {takes.num_speakers - 1}, found {value.tolist()}")
    if name == "size" and (len(value.unique(dim=0)) != 1 or tuple(value[0].tolist()) not in takes.sizes):
        known = ", ".join(map(shape_text, takes.sizes))
        raise SamplerError(f"size: expected one of {known} for a whole request, found {value.tolist()}")
