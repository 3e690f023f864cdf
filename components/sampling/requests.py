"""What may be asked of a sampler: seeds, what steers it, its settings, an image to start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from components.config import Strict
from components.errors import SamplerError
from components.shapes import shape_text


@dataclass(frozen=True)
class Source:
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

    def to(self, device: torch.device) -> Source:
        return self._each(lambda values: values.to(device))

    def rows(self, rows: slice) -> Source:
        return self._each(lambda values: values[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Source:
        return replace(self, images=change(self.images), mask=None if self.mask is None else change(self.mask))


@dataclass(frozen=True)
class Blend:
    """The way to other images. `share`: (B,) float in [0, 1], how far: 0 is the request's own, 1 the other's. Seeds
    (B,) int64, labels (B,) int64 and B prompts say what the others differ in; what is None stays."""

    seeds: Tensor | None
    share: Tensor
    labels: Tensor | None = None
    prompts: tuple[str, ...] | None = None

    def to(self, device: torch.device) -> Blend:
        return self._each(lambda values: values.to(device))

    def rows(self, rows: slice) -> Blend:
        return replace(
            self._each(lambda values: values[rows]), prompts=None if self.prompts is None else self.prompts[rows]
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Blend:
        tensors = {name: getattr(self, name) for name in ("seeds", "share", "labels")}
        return replace(self, **{name: None if values is None else change(values) for name, values in tensors.items()})


@dataclass(frozen=True)
class Request:
    """What to sample, a row an image.

    seeds:             (B,) int64
    labels:            (B,) int64 class numbers, or None for no class
    settings:          the family's own Settings
    prompts:           B texts, for samplers that take texts; None for no text
    negative_labels:   (B,) int64: the class that guidance leads away from, instead of from no class
    negative_prompts:  B texts, likewise
    source:            images to edit, for samplers that edit
    blend:             other seeds, classes or texts to go towards, likewise
    """

    seeds: Tensor
    labels: Tensor | None
    settings: Strict
    prompts: tuple[str, ...] | None = None
    negative_labels: Tensor | None = None
    negative_prompts: tuple[str, ...] | None = None
    source: Source | None = None
    blend: Blend | None = None

    def to(self, device: torch.device) -> Request:
        parts = {name: part and part.to(device) for name, part in self._parts.items()}
        return self._each(lambda values: values.to(device), **parts)

    def split(self, batch_size: int) -> Iterator[Request]:
        """The same images in parts of up to `batch_size`."""
        for start in range(0, len(self.seeds), batch_size):
            rows = slice(start, start + batch_size)
            texts = {name: getattr(self, name) for name in ("prompts", "negative_prompts")}
            cut = {name: None if text is None else text[rows] for name, text in texts.items()}
            parts = {name: part and part.rows(rows) for name, part in self._parts.items()}
            yield self._each(lambda values, rows=rows: values[rows], **parts, **cut)

    @property
    def _parts(self) -> dict[str, Source | Blend | None]:
        return {"source": self.source, "blend": self.blend}

    def _each(self, change: Callable[[Tensor], Tensor], **changes: object) -> Request:
        tensors = {name: getattr(self, name) for name in ("seeds", "labels", "negative_labels")}
        changed = {name: None if values is None else change(values) for name, values in tensors.items()}
        return replace(self, **changed, **changes)
