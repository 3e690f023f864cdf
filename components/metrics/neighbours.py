"""Figures from nearest neighbours in feature space: is a sample among the real images (precision, density), is a real
image among the samples (recall, coverage), is a sample a copy of a training image (nearest).

A set's manifold is the union of balls around its members, each reaching to the k-th nearest other member
(Kynkaanniemi et al. 2019, equation 1). Distances are exact, in float64, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 1024  # of the distance matrix held at once


@dataclass(frozen=True)
class Manifold:
    """Features (N, D) and the radius (N,) of each one's ball."""

    features: Tensor
    radii: Tensor

    @staticmethod
    def of(features: Tensor, neighbours: int) -> Manifold:
        """Raises ValueError unless there are more than `neighbours` features."""
        if len(features) <= neighbours:
            raise ValueError(f"{neighbours} neighbours need more than {neighbours} images, found {len(features)}")
        # the nearest of all is the member itself, at distance 0
        return Manifold(
            features, torch.cat([block.kthvalue(neighbours + 1).values for block in _distances(features, features)])
        )


def share_inside(features: Tensor, manifold: Manifold) -> float:
    """The share of features (M, D) that lie in some ball: precision of samples in the real images' manifold, recall of
    real images in the samples' (Kynkaanniemi et al. 2019, equation 2)."""
    inside = [(block <= manifold.radii).any(1) for block in _distances(features, manifold.features)]
    return float(torch.cat(inside).double().mean())


def density(samples: Tensor, real: Manifold, neighbours: int) -> float:
    """In how many balls of real images a sample lies, over the number expected (Naeem et al. 2020, equation 4). Unlike
    precision it is not fooled by one real outlier; it may exceed 1."""
    balls = sum(float((block <= real.radii).sum()) for block in _distances(samples, real.features))
    return balls / (neighbours * len(samples))


def coverage(samples: Tensor, real: Manifold) -> float:
    """The share of real images whose ball holds a sample (Naeem et al. 2020, equation 5)."""
    _, distances = nearest(real.features, samples)
    return float((distances <= real.radii).double().mean())


def nearest(features: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """For each of features (M, D) the nearest of `among` (N, D): its row (M,) int64 and its distance (M,)."""
    blocks = [block.min(1) for block in _distances(features, among)]
    return torch.cat([block.indices for block in blocks]), torch.cat([block.values for block in blocks])


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Euclidean distances of blocks of rows of `a` to all of `b`."""
    for rows in a.double().split(_ROWS):
        # by differences: the matrix product's way gives equal images a distance above 0
        yield torch.cdist(rows, b.double(), compute_mode="donot_use_mm_for_euclid_dist")
