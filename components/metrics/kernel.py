"""Kernel distances: squared maximum mean discrepancy, under the cubic kernel (KID, Binkowski et al. 2018, section 4)
and under a Gaussian one on directions (CMMD, Jayasumana et al. 2024, section 4)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from components.metrics import intervals
from components.metrics.figures import Definition, Figures, named

_ROWS = 1024  # of the kernel matrix held at once
_DIAGONAL = 64  # rows whose small kernel matrix is computed for its diagonal alone
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al. 2024, section 4
Kernel = Callable[[Tensor, Tensor], Tensor]
KERNEL_DISTANCE = Definition(
    name="kid",
    label="kernel distance",
    column="KID",
    group="distances",
    explanation="squared maximum mean discrepancy of features, cubic kernel, unbiased: around 0 for real images",
    kind="distance",
    better="lower",
)
CMMD = Definition(
    name="cmmd",
    label="CMMD",
    group="distances",
    explanation="the same of unit vectors under a Gaussian kernel, times 1000; the published one is on CLIP's features",
    kind="distance",
    better="lower",
)


@dataclass(frozen=True)
class Side:
    """The real images' side of a discrepancy: features (N, D), the kernel, and its mean between two of them."""

    features: Tensor
    kernel: Kernel
    own: float

    @staticmethod
    def of(features: Tensor, labels: Tensor | None, kernel: Kernel) -> Side:
        """Raises ValueError of less than two images. `labels`: see `discrepancy`."""
        _refuse_too_few(features)
        return Side(features, kernel, float(_own_means(features, _strata(labels, len(features)), kernel).mean()))


class KernelReference:
    """Real images, features (N, D) and classes (N,) int64 or None, that set after set is compared with: what they are
    among themselves, most of the work where they are many, is computed once."""

    def __init__(self, features: Tensor, labels: Tensor | None = None):
        self._features, self._labels = features, labels

    @functools.cached_property
    def cubic(self) -> Side:
        return Side.of(self._features, self._labels, cubic_kernel)

    @functools.cached_property
    def directions(self) -> Side:
        return Side.of(F.normalize(self._features), self._labels, gaussian_kernel)


def kernel_figures(generated: Tensor, reference: KernelReference, asked: Tensor | None = None) -> Figures:
    """kid and cmmd of generated features (M, D), with intervals from their standard errors. `asked` (M,) int64: the
    classes of them, None where nobody chose."""
    found = {KERNEL_DISTANCE: kernel_distance(generated, reference, asked), CMMD: cmmd(generated, reference, asked)}
    return named(*(one.figure(value, intervals.normal(value, stderr)) for one, (value, stderr) in found.items()))


def kernel_distance(generated: Tensor, reference: KernelReference, asked: Tensor | None = None) -> tuple[float, float]:
    """KID of generated features (M, D), and its standard error. Kernel: (x.y / D + 1)^3. `asked`: see `discrepancy`."""
    return discrepancy(generated, reference.cubic, asked)


def cmmd(generated: Tensor, reference: KernelReference, asked: Tensor | None = None) -> tuple[float, float]:
    """The discrepancy of the features' directions, times 1000, and its standard error; on CLIP's features it is the
    published CMMD, here unbiased."""
    value, stderr = discrepancy(F.normalize(generated), reference.directions, asked)
    return CMMD_SCALE * value, CMMD_SCALE * stderr


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) (x.y / D + 1)^3 of a (M, D) and b (N, D). torchmetrics has it, and takes seconds to import."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) exp(-|x - y|^2 / (2 sigma^2)) of unit vectors a (M, D) and b (N, D)."""
    return torch.exp((a @ b.T - 1) / CMMD_SIGMA**2)


def discrepancy(generated: Tensor, reference: Side, asked: Tensor | None = None) -> tuple[float, float]:
    """The unbiased estimate from generated (M, D) and reference (N, D) features, and its standard error over sets of
    generated ones. Raises ValueError of less than two images.

    The estimate is a U-statistic over all pairs, so unlike averages over subsets it depends on no draw. `asked` (M,)
    and the reference's `labels` (N,) int64 are classes whose numbers were chosen, not drawn: pairs of one class are
    then too few among all pairs, which would draw the estimate below zero, so that each pair of classes is averaged by
    itself and weighted with the classes' shares. The error is that of the first-order terms (Serfling 1980, section
    5.5.1): the spread, over images within a class, of each image's mean kernel to its own set minus that to the other.
    """
    _refuse_too_few(generated)
    strata, kernel = _strata(asked, len(generated)), reference.kernel
    own_generated = _own_means(generated, strata, kernel)
    across = torch.cat([kernel(rows, reference.features).mean(1) for rows in generated.split(_ROWS)])
    distance = own_generated.mean() + reference.own - 2 * across.mean()
    terms = own_generated - across
    groups = [terms[strata == stratum] for stratum in strata.unique()]
    variance = sum(len(group) * float(group.var()) for group in groups) / len(terms) ** 2
    return float(distance), 2 * math.sqrt(variance)


def _refuse_too_few(features: Tensor) -> None:
    if len(features) < 2:
        raise ValueError(f"kernel distance needs 2 images or more on each side, found {len(features)}")


def _strata(labels: Tensor | None, count: int) -> Tensor:
    """(count,) int64 numbers from 0 of groups of two or more: the classes, those of one member in one group with each
    other, or with the smallest class if there is but one (collapsed strata, Cochran 1977, section 5A.12)."""
    if labels is None:
        return torch.zeros(count, dtype=torch.int64)
    _, strata, counts = labels.unique(return_inverse=True, return_counts=True)
    order = counts.argsort(stable=True)
    joined = int((counts == 1).sum())
    if joined:
        joined = min(max(joined, 2), len(counts))
        number = torch.empty_like(counts)
        number[order] = (torch.arange(len(counts)) - joined + 1).clamp(min=0)
        strata = number[strata]
    return strata


def _own_means(features: Tensor, strata: Tensor, kernel: Kernel) -> Tensor:
    """(N,) the mean kernel of each row of features (N, D) to a draw of its set's distribution: of each stratum to the
    others of it, weighted with its share."""
    members = F.one_hot(strata).to(features.dtype)  # (N, S)
    counts = members.sum(0)
    found = []
    for rows, mine in zip(features.split(_ROWS), strata.split(_ROWS), strict=True):
        sums, numbers = kernel(rows, features) @ members, counts.repeat(len(rows), 1)
        own = torch.cat([kernel(part, part).diagonal() for part in rows.split(_DIAGONAL)])
        sums[torch.arange(len(rows)), mine] -= own
        numbers[torch.arange(len(rows)), mine] -= 1
        found.append((sums / numbers) @ counts / len(features))
    return torch.cat(found)
