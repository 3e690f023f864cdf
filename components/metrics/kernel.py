"""Kernel distances: squared maximum mean discrepancy, under the cubic kernel (KID, Binkowski et al. 2018, section 4)
and under a Gaussian one on directions (CMMD, Jayasumana et al. 2024, section 4)."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    explanation="squared maximum mean discrepancy of features under a cubic kernel; KID on Inception's",
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


def kernel_figures(generated: Tensor, reference: Tensor) -> Figures:
    """kid and cmmd of generated (M, D) and reference (N, D) features, with intervals from their standard errors."""
    found = {KERNEL_DISTANCE: kernel_distance(generated, reference), CMMD: cmmd(generated, reference)}
    return named(*(one.figure(value, intervals.normal(value, stderr)) for one, (value, stderr) in found.items()))


def kernel_distance(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """KID from generated (M, D) and reference (N, D) features, and its standard error. Kernel: (x.y / D + 1)^3."""
    return discrepancy(generated, reference, cubic_kernel)


def cmmd(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """The discrepancy of the features' directions, times 1000, and its standard error; on CLIP's features it is the
    published CMMD, here unbiased."""
    value, stderr = discrepancy(F.normalize(generated), F.normalize(reference), gaussian_kernel)
    return CMMD_SCALE * value, CMMD_SCALE * stderr


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) (x.y / D + 1)^3 of a (M, D) and b (N, D). torchmetrics has it, and takes seconds to import."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) exp(-|x - y|^2 / (2 sigma^2)) of unit vectors a (M, D) and b (N, D)."""
    return torch.exp((a @ b.T - 1) / CMMD_SIGMA**2)


def discrepancy(generated: Tensor, reference: Tensor, kernel: Kernel) -> tuple[float, float]:
    """The unbiased estimate from generated (M, D) and reference (N, D) features, and its standard error.

    The estimate is a U-statistic over all pairs, so unlike averages over subsets it depends on no draw. Its error is
    that of the first-order terms (Serfling 1980, section 5.5.1): the spread, over images, of each image's mean kernel
    to its own set minus that to the other.
    """
    if min(len(generated), len(reference)) < 2:
        raise ValueError(
            f"kernel distance needs 2 images or more on each side, found {len(generated)}, {len(reference)}"
        )
    own_generated = _row_sums(generated, generated, kernel, skip_self=True) / (len(generated) - 1)
    own_reference = _row_sums(reference, reference, kernel, skip_self=True) / (len(reference) - 1)
    across_generated, across_reference = _cross_sums(generated, reference, kernel)
    across_generated, across_reference = across_generated / len(reference), across_reference / len(generated)
    distance = own_generated.mean() + own_reference.mean() - 2 * across_generated.mean()
    spread = (own_generated - across_generated).var() / len(generated)
    spread += (own_reference - across_reference).var() / len(reference)
    return float(distance), 2 * math.sqrt(float(spread))


def _row_sums(a: Tensor, b: Tensor, kernel: Kernel, skip_self: bool = False) -> Tensor:
    """(len(a),) sums of the kernel of each row of `a` with all rows of `b`."""
    sums = [kernel(rows, b).sum(1) for rows in a.split(_ROWS)]
    own = torch.cat([kernel(rows, rows).diagonal() for rows in a.split(_DIAGONAL)]) if skip_self else 0.0
    return torch.cat(sums) - own


def _cross_sums(a: Tensor, b: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The kernel's sums over rows (len(a),) and over columns (len(b),)."""
    of_a, of_b = [], torch.zeros(len(b), dtype=b.dtype)
    for rows in a.split(_ROWS):
        block = kernel(rows, b)
        of_a.append(block.sum(1))
        of_b += block.sum(0)
    return torch.cat(of_a), of_b
