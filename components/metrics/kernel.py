"""Kernel distance, KID: squared maximum mean discrepancy under the cubic kernel (Binkowski et al. 2018, section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_kernel

_ROWS = 1024  # of the kernel matrix held at once


def kernel_distance(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """The unbiased estimate from generated (M, D) and reference (N, D) features, and its standard error.

    The kernel is (x.y / D + 1)^3. The estimate is a U-statistic over all pairs, so unlike averages over subsets it
    depends on no draw. Its error is that of the first-order terms (Serfling 1980, section 5.5.1): the spread, over
    images, of each image's mean kernel to its own set minus that to the other.
    """
    if min(len(generated), len(reference)) < 2:
        raise ValueError(
            f"kernel distance needs 2 images or more on each side, found {len(generated)}, {len(reference)}"
        )
    own_generated = _row_sums(generated, generated, skip_self=True) / (len(generated) - 1)
    own_reference = _row_sums(reference, reference, skip_self=True) / (len(reference) - 1)
    across_generated = _row_sums(generated, reference) / len(reference)
    across_reference = _row_sums(reference, generated) / len(generated)
    distance = own_generated.mean() + own_reference.mean() - 2 * across_generated.mean()
    spread = (own_generated - across_generated).var() / len(generated)
    spread += (own_reference - across_reference).var() / len(reference)
    return float(distance), 2 * math.sqrt(float(spread))


def _row_sums(a: Tensor, b: Tensor, skip_self: bool = False) -> Tensor:
    """(len(a),) sums of the kernel of each row of `a` with all rows of `b`."""
    sums = [poly_kernel(rows, b).sum(1) for rows in a.split(_ROWS)]
    own = ((a * a).sum(1) / a.shape[1] + 1) ** 3 if skip_self else 0.0
    return torch.cat(sums) - own
