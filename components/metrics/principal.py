"""The second opinion: a distance on the principal components of pixels, which nothing was trained for. It sees overall
shape and contrast, not fine texture, and is no quality on its own; it tells whether an order of samplers is the
extractor's alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from components.metrics.figures import Definition, Figure
from components.metrics.frechet import Moments, frechet_distance, frechet_interval
from components.metrics.intervals import Resampling

COMPONENTS = 64  # as many as the judge has features by default
SIDES = {1: 1024, 2: 16, 3: 8}  # by the number of axes: longer ones are averaged down
PIXEL_DISTANCE = Definition(
    name="pixel_distance",
    label="FD, pixel PCA",
    column="FD, pixels",
    group="distances",
    explanation=f"the Fréchet distance on the first {COMPONENTS} principal components of the pixels, a second opinion",
    kind="distance",
    better="lower",
)


def small(rows: Tensor) -> Tensor:
    """Rows (N, C, ...) of one to three axes -> (N, C * ...) of these averaged down to SIDES."""
    axes = rows.ndim - 2
    if axes not in SIDES:
        return rows.flatten(1)
    sides = tuple(min(SIDES[axes], side) for side in rows.shape[2:])
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[axes - 1]
    return pool(rows, sides).flatten(1)


@dataclass(frozen=True)
class Projection:
    """Principal components: `mean` (P,) and `basis` (P, K), orthonormal, of largest variance first; float64."""

    mean: Tensor
    basis: Tensor

    @staticmethod
    def of(pixels: Tensor, components: int = COMPONENTS) -> Projection:
        """Of pixels (N, P), N at least 2; K is the least of `components` and P."""
        moments = Moments.of(pixels)
        _, vectors = torch.linalg.eigh(moments.covariance)
        return Projection(moments.mean, vectors.flip(1)[:, :components])

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, K) float64 of pixels (N, P)."""
        return (pixels.double() - self.mean) @ self.basis


@dataclass(frozen=True)
class PixelReference:
    """The real images' side of the second opinion: the training images' components, the held-out ones' moments."""

    projection: Projection
    moments: Moments

    @staticmethod
    def of(train: Tensor, held_out: Tensor) -> PixelReference:
        """Of pixels (N, P) and (M, P) as `small` gives them."""
        projection = Projection.of(train)
        return PixelReference(projection, Moments.of(projection(held_out)))


def pixel_figure(pixels: Tensor, reference: PixelReference, resampling: Resampling) -> Figure:
    """pixel_distance of pixels (N, P) as `small` gives them, with a bootstrap interval where there are resamples."""
    features = reference.projection(pixels)
    distance = frechet_distance(Moments.of(features), reference.moments)
    return PIXEL_DISTANCE.figure(distance, frechet_interval(features, reference.moments, resampling.rows))
