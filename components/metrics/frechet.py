"""The Fréchet distance between two sets of features, each taken for a Gaussian (Heusel et al. 2017, equation 6).

torchmetrics computes it from images, one extractor pass a call, with the eigenvalues of a non-symmetric product; here
features are computed once and shared by all figures, moments stream and merge, and the square root stays symmetric,
so that singular covariances (fewer images than features) do no harm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from components.metrics.figures import Definition, Figure, Figures, named
from components.metrics.intervals import Interval, Resampling, around, normal, part_variance

FRECHET_DISTANCE = Definition(
    name="frechet_distance",
    label="Fréchet distance",
    column="FD",
    group="distances",
    explanation="between Gaussians that are fitted to the features of generated and of real images; FID on Inception's",
    kind="distance",
    better="lower",
    summary=True,
)
FRECHET_INFINITY = Definition(
    name="frechet_infinity",
    label="FD∞",
    group="distances",
    explanation="the Fréchet distance extrapolated to infinitely many samples, free of their number's bias",
    kind="distance",
    better="lower",
)
FRECHET_BALANCED = Definition(
    name="frechet_balanced",
    label="Fréchet distance, balanced",
    column="FD, balanced",
    group="distances",
    explanation="the Fréchet distance with samples weighted so that the judge finds the real images' classes",
    kind="distance",
    better="lower",
)
_SPLITS = 20  # into halves
_BOOTSTRAP_VALUES = 2**22  # of resampled features held at once: few large operations, little memory


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and covariance (D, D) of feature vectors, float64. The covariance divides by count - 1."""

    count: int
    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(features: Tensor, chunk: int = 4096) -> Moments:
        """Moments of features (N, D), N at least 2."""
        return Moments.streamed(features.split(chunk))

    @staticmethod
    def weighted(features: Tensor, weights: Tensor) -> Moments:
        """Moments of features (N, D) by weights (N,) of any scale, not negative and more than one positive."""
        features, weights = features.double(), weights.double() / weights.double().sum()
        mean = weights @ features
        centred = features - mean
        covariance = (weights * centred.T) @ centred / (1 - weights.square().sum())
        return Moments(len(features), mean, covariance)

    @staticmethod
    def streamed(chunks: Iterable[Tensor]) -> Moments:
        """Moments of chunks (n, D) of any float type; memory holds one chunk."""
        return Sums.streamed(chunks).moments()


@dataclass(frozen=True)
class Sums:
    """Mergeable sums of a part of a set: count, mean (D,), and scatter (D, D), the sum of outer products about the
    mean. float64; merges as Chan et al. 1983, equation 2.1."""

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def streamed(chunks: Iterable[Tensor]) -> Sums:
        """Sums over chunks (n, D) of any float type, at least one."""
        return functools.reduce(Sums.plus, map(Sums.of, chunks))

    @staticmethod
    def of(values: Tensor) -> Sums:
        values = values.double()
        mean = values.mean(0)
        values = values - mean
        return Sums(len(values), mean, values.T @ values)

    def plus(self, other: Sums) -> Sums:
        total = self.count + other.count
        apart = other.mean - self.mean
        scatter = (self.scatter + other.scatter).addr_(apart, apart, alpha=self.count * other.count / total)
        return Sums(total, self.mean + apart * (other.count / total), scatter)

    def moments(self) -> Moments:
        """Raises ValueError of fewer than 2 vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, found {self.count}")
        return Moments(self.count, self.mean, self.scatter / (self.count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), in squared units of the features, never negative."""
    return float(_distances(a.mean[None], a.covariance[None], b, _root(b.covariance)))


def frechet_figures(features: Tensor, reference: Moments, resampling: Resampling) -> Figures:
    """frechet_distance and, where half of features (N, D) are as many as they have dimensions, frechet_infinity, with
    bootstrap intervals where `resampling` has resamples."""
    distance = frechet_distance(Moments.of(features), reference)
    interval = frechet_interval(features, reference, resampling.rows)
    limit = frechet_infinity(features, reference, resampling.halves)
    if limit is None:
        return named(FRECHET_DISTANCE.figure(distance, interval))
    # the bias that is taken away varies far less than the distance: one spread serves both
    around_limit = None if interval is None else tuple(end - distance + limit for end in interval)
    return named(FRECHET_DISTANCE.figure(distance, interval), FRECHET_INFINITY.figure(limit, around_limit))


def frechet_infinity(features: Tensor, reference: Moments, halves: Tensor) -> float | None:
    """The distance of features (N, D) extrapolated to infinitely many, for a bias that goes with 1 / N (Chong and
    Forsyth 2020, section 4): twice the distance less the mean of halves of the set. `halves`: (S, 2, N), of which some
    are used. None where half the set has fewer images than dimensions: its bias follows no such law. May come out just
    below 0."""
    count, dim = features.shape
    if count < 2 * dim:
        return None
    found = _of_halves(features, reference, halves)
    return 2 * frechet_distance(Moments.of(features), reference) - float(found.mean())


def balanced_figure(features: Tensor, reference: Moments, weights: Tensor, resampling: Resampling) -> Figure:
    """frechet_balanced of features (N, D) by weights (N,), with an interval from the spread of halves."""
    distance = frechet_distance(Moments.weighted(features, weights), reference)
    if not len(resampling.rows):
        return FRECHET_BALANCED.figure(distance)
    # of a smooth figure the variance halves when the samples double
    variance = part_variance(_of_halves(features, reference, resampling.halves, weights)) / 2
    return FRECHET_BALANCED.figure(distance, normal(distance, math.sqrt(variance), low=0.0))


def _of_halves(features: Tensor, reference: Moments, halves: Tensor, weights: Tensor | None = None) -> Tensor:
    """(S, 2) distances of the halves of features (N, D), some of `halves` (S, 2, N)."""
    root, found = _root(reference.covariance), []
    weights = torch.ones(len(features)) if weights is None else weights
    for half in halves[:_SPLITS].flatten(0, 1) > 0:
        moments = Moments.weighted(features[half], weights[half])
        found.append(_distances(moments.mean[None], moments.covariance[None], reference, root))
    return torch.cat(found).view(-1, 2)


def _distances(means: Tensor, covariances: Tensor, reference: Moments, root: Tensor) -> Tensor:
    """(R,) distances of R Gaussians, means (R, D) and covariances (R, D, D), to one whose covariance has this root."""
    # tr (A B)^(1/2) = tr (R A R)^(1/2) with R = B^(1/2); R A R is symmetric positive semi-definite
    cross = torch.linalg.eigvalsh(root @ covariances @ root).clamp(min=0).sqrt().sum(1)
    traces = covariances.diagonal(dim1=1, dim2=2).sum(1) + reference.covariance.trace()
    return ((means - reference.mean).square().sum(1) + traces - 2 * cross).clamp(min=0)


def _root(covariance: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T


def frechet_interval(features: Tensor, reference: Moments, rows: Tensor) -> Interval | None:
    """A bootstrap interval of the distance of features (N, D) to a fixed reference, which all that is compared shares;
    None without resamples.

    `rows` (R, N) int64 as intervals.resampled_rows draws them. It lies around the distance at N samples, whose bias
    depends on N and on the distribution: only equal numbers compare, or `frechet_infinity`.
    """
    if not len(rows):
        return None
    count, dim = features.shape
    features, root = features.double(), _root(reference.covariance)
    draws = []
    for part in rows.split(max(1, _BOOTSTRAP_VALUES // (dim * max(count, dim)))):
        drawn = features[part]  # (R, N, D)
        means = drawn.mean(1)
        drawn = drawn - means[:, None]
        draws.append(_distances(means, drawn.mT @ drawn / (count - 1), reference, root))
    distance = frechet_distance(Moments.of(features), reference)
    return around(distance, torch.cat(draws), low=0.0)
