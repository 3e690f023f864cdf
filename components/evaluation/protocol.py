"""The protocol of a measurement: everything that a figure depends on besides the model. Published distances of one data
set span two orders of magnitude because protocols differ, so figures are compared under equal protocols only."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from typing import Literal

from pydantic import AliasChoices, Field, model_validator

from components.config import Strict
from components.errors import InputError


class ExtractorConfig(Strict):
    """What turns images into features. `weights` is the file (inception) or the folder or hub name (dinov2, clip) of a
    pretrained one, and empty for the judge and the clip that the pipeline trains and `inputs` gives evaluate."""

    name: Literal["judge", "inception", "dinov2", "clip"] = "judge"
    weights: str = ""


class SearchConfig(Strict):
    """A search for good solver settings, scored on training images. `space` gives each setting two bounds or the
    values to choose among; a setting of two numbers takes a pair of bounds for each. `trials` 0 searches nothing."""

    trials: int = Field(0, ge=0)
    num_samples: int = Field(250, ge=2)  # of each trial
    max_ms_per_image: float | None = Field(None, gt=0)  # slower settings are never chosen
    space: dict[str, list] = {"num_inference_steps": [5, 50], "guidance_scale": [1.0, 4.0]}


class EvaluateConfig(Strict):
    """How to measure. `batch_size` is also the one at which milliseconds per image are measured."""

    extractor: ExtractorConfig = ExtractorConfig()
    num_samples: int = Field(1000, ge=2)
    batch_size: int = Field(100, gt=0)
    neighbours: int = Field(5, ge=1)  # of precision and recall: Kynkaanniemi et al. 2019 use 3, and 5 for few images
    neighbour_images: int = Field(10_000, ge=2)  # at most, real or generated, in figures whose cost is quadratic
    resamples: int = Field(200, ge=20)  # of the bootstrap behind each interval
    seed: int = Field(0, ge=0, lt=2**31 - 1)  # beyond it, sets of different seeds would share images
    likelihood_rows: int = Field(500, ge=2)  # held-out, and as many of the training set, whose likelihood is measured
    latent_likelihood: bool = False  # whether diffusion on latents tells its density of them, at some seconds a sampler
    lpips: str = ""  # a file of AlexNet's weights as torchvision ships it; empty: LPIPS diversity is not measured
    clip_score: str = ""  # a CLIP folder or hub name; empty: that of inputs' evaluate/clip, or the fit is not measured
    search: SearchConfig = SearchConfig()
    real_draws: int = Field(40, ge=2)  # of real images, measured as samples are: what is possible, and by chance
    snapshot_samples: int = Field(0, ge=0)  # at each step that a training kept averages of; 0: not measured

    @model_validator(mode="after")
    def _are_enough(self) -> EvaluateConfig:
        for name in ("num_samples", "neighbour_images"):
            if (count := getattr(self, name)) <= self.neighbours:
                raise ValueError(f"{name}: expected more than neighbours ({self.neighbours}), found {count}")
        if self.snapshot_samples == 1:
            raise ValueError("snapshot_samples: a distance needs two or more; expected 0 or at least 2, found 1")
        return self


REVISION = 5  # of the arithmetic behind the figures: raised where a figure comes to mean something else


class ProtocolMismatch(InputError):
    """Two figures were measured in different ways and must not be compared."""


class Protocol(Strict):
    """`extractor_hash` and `reference_hash` are sha256 of the extractor's weights and of the reference data set's
    manifest, which lists the hash of every shard; `judge_hash` is that of the classifier behind label figures."""

    extractor: str
    extractor_hash: str
    judge_hash: str
    resize: str  # how images came to the extractor's size
    reference: str  # the split's name
    reference_hash: str
    reference_count: int
    train_hash: str  # of the images that samples are compared with for copies
    row_shape: tuple[int, ...] = Field(validation_alias=AliasChoices("row_shape", "image_shape"))  # channels first
    num_samples: int
    batch_size: int
    neighbours: int
    neighbour_images: int
    resamples: int
    seed: int
    likelihood_rows: int = 500
    lpips: str  # sha256 of the weights, or empty
    clip_score: str  # likewise
    versions: dict[str, str]
    revision: int = 1

    @property
    def id(self) -> str:
        """Twelve hex digits that figures carry: equal of equal protocols."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def library_versions(*more: str) -> dict[str, str]:
    """Versions of the libraries whose arithmetic the figures come from; `more` are those of a pretrained extractor."""
    return {name: importlib.metadata.version(name) for name in ("torch", "scikit-learn", *more)}


def refuse_unless_equal(a: Protocol, b: Protocol) -> None:
    """Raises ProtocolMismatch naming every field in which two protocols differ, with both values."""
    ours, theirs = a.model_dump(mode="json"), b.model_dump(mode="json")
    different = [f"{name} {ours[name]!r} against {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
    if different:
        raise ProtocolMismatch(f"measured under different protocols: {'; '.join(different)}; evaluate both again")
