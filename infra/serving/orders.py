"""What is to be made, as the API hands it to replicas: one image, clip or film each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from components.config import Strict, by_path


class SourceImage(Strict):
    """An image to start from, or to show anew by a sampler that takes the content of images, at the sampler's own size:
    uint8 pixels, channels first. `mask`: a byte a pixel, 255 where to redraw; empty for everywhere. `strength` in
    (0, 1]: how much noise is put on it."""

    pixels: bytes
    strength: float
    mask: bytes = b""


class Towards(Strict):
    """The image that one goes towards, `share` in [0, 1] of the way: of another seed, class or text; what is None is
    its own."""

    share: float
    seed: int | None = None
    label: int | None = None
    prompt: str | None = None


class SampleRequest(Strict):
    """One image to be made by the version with the key `model`. `group` is shared by the images of one request, which
    came at `asked_at`, a time.time()."""

    model: str
    seed: int
    settings: dict[str, Any]
    group: str
    label: int | None = None
    speaker: int | None = None
    negative_label: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    source: SourceImage | None = None
    first: str | None = None  # of a film: a picture that it begins with, its stored values in base64
    instead_of: str | None = None
    blend: Towards | None = None
    output_format: str = "png"  # one of its medium's
    output_compression: int = 100
    num_previews: int = 0
    size: str | None = None  # that the image is resized to; None for the model's own
    sides: tuple[int, ...] | None = None  # that the model makes; None for its usual ones
    notes: bool = True  # whether the file says what it was made with, where its format can
    asked_at: float = Field(default_factory=time.time)


def num_steps(settings: Mapping[str, Any]) -> int:
    """Of a sampler's settings, or of all parts of a composite's, a block each."""
    return sum(steps_by_part(settings).values())


def steps_by_part(settings: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of steps in a sampler's settings and in the blocks of a composite's parts, by their keys with dots
    between."""
    values = by_path(settings)
    return {path: value for path, value in values.items() if path.rpartition(".")[2] == "num_inference_steps"}
