"""Figures from nearest neighbours in feature space: is a sample among the real images (precision, density), is a real
image among the samples (recall, coverage), is a sample a copy of a training image (nearest, memorised).

A set's manifold is the union of balls around its members, each reaching to the k-th nearest other member
(Kynkaanniemi et al. 2019, equation 1). Distances are in float64, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from components.metrics import intervals
from components.metrics.figures import Definition, Figure, Figures, named
from components.metrics.intervals import Resampling

_ROWS = 1024  # of the distance matrix held at once
_AMONG = 8192  # of the set that is searched for neighbours, as float64 at once
_EQUAL = 1e-12  # of the squared lengths: what cancellation leaves of the squared distance of equal vectors
MEMORISED_RATIO = 1 / 3  # Yoon et al. 2023, section 4.1
_DUPLICATE = 0.1  # of the mean distance to so many nearest others: rows below it show one image, stored repeatedly
_NEARBY = 50  # Carlini et al. 2023, section 4.2
PRECISION = Definition(
    name="precision",
    label="precision",
    column="Precision",
    group="fidelity and diversity",
    explanation="the share of generated images that lie among the real ones",
    kind="score",
    better="higher",
)
RECALL = Definition(
    name="recall",
    label="recall",
    column="Recall",
    group="fidelity and diversity",
    explanation="the share of real images that lie among the generated ones",
    kind="score",
    better="higher",
    summary=True,
)
DENSITY = Definition(
    name="density",
    label="density",
    column="Density",
    group="fidelity and diversity",
    explanation="how many real images' neighbourhoods a generated image lies in, over the number expected",
    kind="score",
    better="higher",
)
COVERAGE = Definition(
    name="coverage",
    label="coverage",
    column="Coverage",
    group="fidelity and diversity",
    explanation="the share of real images whose neighbourhood holds a generated one",
    kind="score",
    better="higher",
)
MEMORISED = Definition(
    name="memorised",
    label="copies",
    column="Memorised",
    group="fidelity and diversity",
    explanation="images less than a third as far from one training image as from any other that is not its duplicate",
    kind="share",
    better="lower",
)


@dataclass(frozen=True)
class Manifold:
    """Features (N, D) and the squared radius (N,) of each one's ball."""

    features: Tensor
    squared_radii: Tensor

    @staticmethod
    def of(features: Tensor, neighbours: int) -> Manifold:
        """Raises ValueError unless there are more than `neighbours` features."""
        return Manifold(features, *nearest_radii(features, neighbours))


def nearest_radii(features: Tensor, *neighbours: int) -> list[Tensor]:
    """For each k of `neighbours` the squared distances (N,) of features (N, D) to their k-th nearest other. Raises
    ValueError unless there are more than k features."""
    if len(features) <= max(neighbours):
        raise ValueError(f"{max(neighbours)} neighbours need more than {max(neighbours)} images, found {len(features)}")
    found: list[list[Tensor]] = [[] for _ in neighbours]
    for block in squared_distances(features, features):
        for radii, k in zip(found, neighbours, strict=True):
            radii.append(block.kthvalue(k + 1).values)  # the nearest of all is the member itself, at distance 0
    return [torch.cat(radii) for radii in found]


def share_inside(features: Tensor, manifold: Manifold) -> float:
    """The share of features (M, D) that lie in some ball: precision of samples in the real images' manifold, recall of
    real images in the samples' (Kynkaanniemi et al. 2019, equation 2)."""
    inside = [(block <= manifold.squared_radii).any(1) for block in squared_distances(features, manifold.features)]
    return float(torch.cat(inside).double().mean())


@dataclass(frozen=True)
class Inside:
    """Membership of samples and real images in each other's balls. `samples`: (N, M) bool, sample n in the ball of real
    image m. `real`: (M, N) bool, real image m in the ball of sample n. `neighbours` is the k of both manifolds.
    `real_wide`: (M, N) bool, the same of balls that reach to the 2k-th neighbour, which is the k-th of half the
    samples."""

    samples: Tensor
    real: Tensor
    neighbours: int
    real_wide: Tensor

    @staticmethod
    def of(samples: Tensor, real: Manifold, neighbours: int) -> Inside:
        radii, wide_radii = nearest_radii(samples, neighbours, min(2 * neighbours, len(samples) - 1))
        of_samples_in_real, of_real_in_samples, wide = [], [], []
        blocks = zip(
            squared_distances(samples, real.features), radii.split(_ROWS), wide_radii.split(_ROWS), strict=True
        )
        for block, near, far in blocks:
            of_samples_in_real.append(block <= real.squared_radii)
            of_real_in_samples.append(block <= near[:, None])
            wide.append(block <= far[:, None])
        return Inside(torch.cat(of_samples_in_real), torch.cat(of_real_in_samples).T, neighbours, torch.cat(wide).T)

    def precise(self) -> Tensor:
        """(N,) bool: the sample lies in some ball; its mean is precision (Kynkaanniemi et al. 2019, equation 2)."""
        return self.samples.any(1)

    def recalled(self) -> Tensor:
        """(M,) bool: the real image lies in some sample's ball; its mean is recall."""
        return self.real.any(1)

    def dense(self) -> Tensor:
        """(N,) float64: in how many balls the sample lies over the number expected; its mean is density (Naeem et al.
        2020, equation 4). Unlike precision it is not fooled by one real outlier; it may exceed 1."""
        return self.samples.sum(1).double() / self.neighbours

    def covered(self) -> Tensor:
        """(M,) bool: the real image's ball holds a sample; its mean is coverage (Naeem et al. 2020, equation 5)."""
        return self.samples.any(0)

    def recall_variance(self, halves: Tensor) -> float:
        """The variance of recall between sets of samples. Balls shrink as samples grow in number, so that the spread of
        halves, whose balls reach to the k-th of half the samples, is about that of the whole. `halves`: (S, 2, N)."""
        return intervals.part_variance(_shares_hit(self.real_wide, halves))

    def coverage_variance(self, halves: Tensor, quarters: Tensor) -> float:
        """The variance of coverage between sets of samples. `halves`: (S, 2, N), `quarters`: (S, 4, N)."""
        return intervals.grown_variance(*(_shares_hit(self.samples.T, parts) for parts in (halves, quarters)))


def neighbour_figures(inside: Inside, resampling: Resampling) -> Figures:
    """precision, recall, density and coverage, with intervals where `resampling` has resamples."""
    precise, dense, weights = inside.precise(), inside.dense(), resampling.weights
    recall, coverage = _share(inside.recalled()), _share(inside.covered())
    of_precision = of_recall = of_coverage = None
    if len(weights):
        count = len(inside.real)
        of_precision = intervals.of_share(_share(precise), len(precise))
        of_recall = intervals.of_spread_share(recall, inside.recall_variance(resampling.halves), count)
        of_coverage = intervals.of_spread_share(coverage, inside.coverage_variance(*resampling.parts), count)
    return named(
        PRECISION.figure(_share(precise), of_precision),
        RECALL.figure(recall, of_recall),
        DENSITY.figure(_share(dense), intervals.of_mean(dense, weights, 0.0)),
        COVERAGE.figure(coverage, of_coverage),
    )


def memorised_figure(features: Tensor, train: Tensor) -> Figure | None:
    """The share of images, by features (M, D), that copy a training image (N, D); None of a single training image."""
    return None if len(train) < 2 else MEMORISED.figure(_share(memorised(features, train)))


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _shares_hit(hits: Tensor, parts: Tensor) -> Tensor:
    """(S, P) shares of the rows of hits (M, N) that some sample of each part hits. `parts`: (S, P, N)."""
    flat = parts.flatten(0, 1)
    found = [(flat @ block.T.float() > 0).sum(1) for block in hits.split(_ROWS)]
    return (torch.stack(found).sum(0) / len(hits)).view(parts.shape[:2])


def nearest(features: Tensor, among: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """For each of features (M, D) the `count` nearest of `among` (N, D), nearest first: rows (M, count) int64 and
    distances (M, count)."""
    values, rows = torch.empty(len(features), 0, dtype=torch.float64), torch.empty(len(features), 0, dtype=torch.int64)
    for start in range(0, len(among), _AMONG):
        part = among[start : start + _AMONG]
        blocks = [block.topk(min(count, len(part)), largest=False) for block in squared_distances(features, part)]
        values = torch.cat([values, torch.cat([block.values for block in blocks])], dim=1)
        rows = torch.cat([rows, start + torch.cat([block.indices for block in blocks])], dim=1)
        values, places = values.topk(min(count, values.shape[1]), largest=False)
        rows = rows.gather(1, places)
    return rows, values.sqrt()


def memorised(features: Tensor, train: Tensor) -> Tensor:
    """(M,) bool: whether a sample, by features (M, D), is a copy of one of the training images (N, D), N of 2 or more:
    less than a third as far from its nearest as from the second nearest (Yoon et al. 2023, section 4.1), duplicates of
    the nearest left out, which would be as near: stored repeatedly, images are copied most."""
    rows, distances = nearest(features, train)
    nearby = nearest(train[rows[:, 0]], train, 1 + min(_NEARBY, len(train) - 1))[1][:, 1:]  # less the image itself
    other = _nearest_outside(features, train, rows[:, 0], _DUPLICATE * nearby.mean(1))
    own = distances[:, 0]
    return ((own < MEMORISED_RATIO * other) & other.isfinite()) | (own == 0)  # not finite: all show one image


def _nearest_outside(features: Tensor, among: Tensor, rows: Tensor, radii: Tensor) -> Tensor:
    """(M,) distances of features (M, D) to the nearest of `among` (N, D) that lies further from the one of its row (M,)
    than its radius (M,); infinite where none does."""
    found = torch.full((len(features),), torch.inf, dtype=torch.float64)
    for part in among.split(_AMONG):
        distances = zip(
            squared_distances(features, part),
            squared_distances(among[rows], part),
            radii.square().split(_ROWS),
            strict=True,
        )
        blocks = [own.masked_fill(apart <= radius[:, None], torch.inf).amin(1) for own, apart, radius in distances]
        found = torch.minimum(found, torch.cat(blocks))
    return found.sqrt()


def squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Squared Euclidean distances (n, N) of blocks of rows of `a` (M, D) to all of `b` (N, D), float64."""
    centre = b.double().mean(0)  # shorter vectors lose fewer digits
    b = b.double() - centre
    lengths = b.square().sum(1)
    for rows in a.split(_ROWS):
        rows = rows.double() - centre
        scale = rows.square().sum(1)[:, None] + lengths
        # the matrix product's way gives equal images a distance just above 0
        block = torch.addmm(scale, rows, b.T, alpha=-2)
        yield block.masked_fill_(block < _EQUAL * scale, 0)
