"""The Fréchet distance between two sets of features, each taken for a Gaussian (Heusel et al. 2017, equation 6).

torchmetrics computes it from images, one extractor pass a call, with the eigenvalues of a non-symmetric product; here
features are computed once and shared by all figures, moments stream and merge, and the square root stays symmetric,
so that singular covariances (fewer images than features) do no harm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_BOOTSTRAP_VALUES = 2**22  # of resampled features held at once: few large operations, little memory


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and covariance (D, D) of feature vectors, float64. The covariance divides by count - 1."""

    count: int
    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(features: Tensor, chunk: int = 4096) -> Moments:
        """Of features (N, D), N at least 2."""
        return Moments.streamed(features.split(chunk))

    @staticmethod
    def streamed(chunks: Iterable[Tensor]) -> Moments:
        """Of chunks (n, D) of any float type; memory holds one chunk. Merges as Chan et al. 1983, equation 2.1."""
        count, mean, scatter = 0, 0.0, 0.0
        for chunk in chunks:
            values = chunk.double()
            apart = values.mean(0) - mean
            values = values - values.mean(0)
            total = count + len(values)
            scatter = scatter + values.T @ values
            if count:
                scatter += torch.outer(apart, apart) * (count * len(values) / total)
            mean = mean + apart * (len(values) / total)
            count = total
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, found {count}")
        return Moments(count, mean, scatter / (count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), in squared units of the features, never negative."""
    return float(_distances(a.mean[None], a.covariance[None], b, _root(b.covariance)))


def _distances(means: Tensor, covariances: Tensor, reference: Moments, root: Tensor) -> Tensor:
    """(R,) distances of R Gaussians, means (R, D) and covariances (R, D, D), to one whose covariance has this root."""
    # tr (A B)^(1/2) = tr (R A R)^(1/2) with R = B^(1/2); R A R is symmetric positive semi-definite
    cross = torch.linalg.eigvalsh(root @ covariances @ root).clamp(min=0).sqrt().sum(1)
    traces = covariances.diagonal(dim1=1, dim2=2).sum(1) + reference.covariance.trace()
    return ((means - reference.mean).square().sum(1) + traces - 2 * cross).clamp(min=0)


def _root(covariance: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T


def frechet_interval(
    features: Tensor,
    reference: Moments,
    generator: torch.Generator,
    *,
    strata: Tensor | None = None,
    resamples: int = 200,
    level: float = 0.95,
) -> tuple[float, float]:
    """A bootstrap interval of the distance of features (N, D) to a fixed reference: how far other seeds would move it.

    The bias that the distance has at N samples is the same for all that are measured with N, and bootstrap samples have
    it twice; so their quantiles are moved to lie around the distance itself. The reference is not resampled, because
    all that is compared shares it. `strata` (N,) int64: labels that were asked for and not drawn; resampling keeps
    the number of each.
    """
    count, dim = features.shape
    strata = torch.zeros(count, dtype=torch.int64) if strata is None else strata
    members = [torch.nonzero(strata == label).flatten() for label in strata.unique()]
    features, root = features.double(), _root(reference.covariance)
    draws = []
    for part in torch.arange(resamples).split(max(1, _BOOTSTRAP_VALUES // (dim * max(count, dim)))):
        rows = [m[torch.randint(len(m), (len(part), len(m)), generator=generator)] for m in members]
        drawn = features[torch.cat(rows, dim=1)]  # (R, N, D)
        means = drawn.mean(1)
        drawn = drawn - means[:, None]
        draws.append(_distances(means, drawn.mT @ drawn / (count - 1), reference, root))
    found = torch.cat(draws)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    around = frechet_distance(Moments.of(features), reference) - found.mean()
    low, high = (found.quantile(tails) + around).clamp(min=0).tolist()
    return low, high
