"""Alignment of a denoiser's tokens to what another net sees in the clean image (Yu et al. 2025, REPA): in training the
tokens after some block, through a small projector, shall point where the features of a frozen judge point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data.info import DataInfo, RunInfo
from components.errors import ConfigError
from components.nets.classifier import Classifier

TEACHER = "teacher"  # the role of the run whose features these are


class AlignConfig(Strict):
    """`weight`: of one minus the cosine, against the denoising loss."""

    layer: int = Field(2, ge=1)  # blocks that the tokens have gone through
    weight: float = Field(0.5, gt=0)
    steps: int | None = Field(None, ge=1)  # of training; after them nothing is aligned


class Projector(nn.Sequential):
    """Tokens (B, N, width) -> (B, N, D), three layers as published."""

    def __init__(self, width: int, features: int):
        hidden = 2 * width
        super().__init__(
            *(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features))
        )


def projector(width: int, data: DataInfo, classifier_of: Callable[[RunInfo], Classifier]) -> Projector:
    """For the features of the teacher that the data set's inputs name; `classifier_of` builds a judge's net. Raises
    ConfigError without a teacher, and of one that sees other images."""
    run = data.inputs.get(TEACHER)
    if run is None:
        raise ConfigError(
            f"align: expected the run of a judge in inputs, NAME/{TEACHER}: runs/..., of a family that takes one; "
            "found none"
        )
    if (run.data.medium, run.data.shape) != (data.decoded.medium, data.decoded.shape):
        raise ConfigError(
            f"align: expected a {TEACHER} of {data.decoded.medium} rows {data.decoded.shape}, found one of "
            f"{run.data.medium} rows {run.data.shape}"
        )
    if len(data.shape) != 3 or len(data.decoded.shape) != 3:
        raise ConfigError(f"align: a {TEACHER} sees planes; expected images, found {data.decoded.medium} rows")
    with torch.device("meta"):
        found = features(classifier_of(run), torch.zeros(1, *data.decoded.shape), (1, 1))
    return Projector(width, found.shape[2])


def features(net: Classifier, rows: Tensor, counts: Sequence[int]) -> Tensor:
    """A judge's maps of rows (B, C, H, W) in [-1, 1] but the first, which is close to the pixels, brought to a grid of
    tokens: (B, N, D) in row-major order. Each map has unit length at every place, so that they count alike."""
    maps = (one.float() for one in net.maps(net.seen(rows))[1:])
    grids = (F.interpolate(one, tuple(counts), mode="bilinear", antialias=True) for one in maps)
    return torch.cat([F.normalize(one, dim=1) for one in grids], dim=1).flatten(2).transpose(1, 2)


def misalignment(projected: Tensor, wanted: Tensor) -> Tensor:
    """One minus the cosine of each token with its feature, the mean; in float32, since the squares of half precision
    leave its range."""
    return 1 - F.cosine_similarity(projected.float(), wanted.float(), dim=-1).mean()
