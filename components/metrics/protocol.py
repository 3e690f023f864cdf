"""The protocol of a measurement: everything that a figure depends on besides the model. Published distances of one data
set span two orders of magnitude because protocols differ, so figures are compared under equal protocols only."""

from __future__ import annotations

import importlib.metadata

from pydantic import Field

from components.config import Strict
from components.errors import InputError


class EvaluateConfig(Strict):
    """How to measure. `batch_size` is also the one at which milliseconds per image are measured."""

    num_samples: int = Field(1000, ge=2)
    batch_size: int = Field(100, gt=0)
    neighbours: int = Field(5, ge=1)  # of precision and recall: Kynkaanniemi et al. 2019 use 3, and 5 for few images
    resamples: int = Field(200, ge=20)  # of the bootstrap behind each interval
    seed: int = 0


class ProtocolMismatch(InputError):
    """Two figures were measured in different ways and must not be compared."""


class Protocol(Strict):
    """`extractor_hash` and `reference_hash` are sha256 of the extractor's weights file and of the reference data set's
    manifest, which lists the hash of every shard."""

    extractor: str
    extractor_hash: str
    reference: str  # the split's name
    reference_hash: str
    reference_count: int
    image_shape: tuple[int, int, int]  # channels, height, width
    num_samples: int
    batch_size: int
    neighbours: int
    resamples: int
    seed: int
    versions: dict[str, str]


def library_versions() -> dict[str, str]:
    """Of the libraries whose arithmetic the figures come from."""
    return {name: importlib.metadata.version(name) for name in ("torch", "torchmetrics")}


def refuse_unless_equal(a: Protocol, b: Protocol) -> None:
    """Raises ProtocolMismatch naming every field in which two protocols differ, with both values."""
    ours, theirs = a.model_dump(mode="json"), b.model_dump(mode="json")
    different = [f"{name} {ours[name]!r} against {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
    if different:
        raise ProtocolMismatch(f"measured under different protocols: {'; '.join(different)}; evaluate both again")
