"""Bootstrap intervals (Efron and Tibshirani 1993, chapter 13): how far another set of samples would move a figure.

A resampled set repeats images, so a figure that depends on how many different ones there are (a distance's bias,
coverage) is shifted in every resample alike. The quantiles are therefore moved to lie around the figure itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL = 0.95
NORMAL_QUANTILE = 1.959964  # of LEVEL, two-sided
Interval = tuple[float, float]


def resampled_rows(count: int, resamples: int, generator: torch.Generator, strata: Tensor | None = None) -> Tensor:
    """(resamples, count) int64: which images each resample holds. `strata` (count,) int64 are labels that were asked
    for and not drawn; every resample keeps the number of each."""
    strata = torch.zeros(count, dtype=torch.int64) if strata is None else strata
    members = [torch.nonzero(strata == label).flatten() for label in strata.unique()]
    drawn = [m[torch.randint(len(m), (resamples, len(m)), generator=generator)] for m in members]
    return torch.cat(drawn, dim=1)


def multiplicities(rows: Tensor, count: int) -> Tensor:
    """(R, count) float32: how often each image is in each resample. `rows` as `resampled_rows` gives them."""
    return torch.zeros(len(rows), count).scatter_add_(1, rows, torch.ones(rows.shape))


def around(estimate: float, draws: Tensor, low: float = -torch.inf, high: float = torch.inf) -> Interval:
    """The interval of a figure from its values (R,) on resamples, within the figure's own range."""
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    draws = draws.double()
    left, right = (draws.quantile(tails) - draws.mean() + estimate).clamp(low, high).tolist()
    return left, right


def of_mean(values: Tensor, weights: Tensor, low: float = -torch.inf, high: float = torch.inf) -> Interval:
    """The interval of the mean of values (N,). `weights`: (R, N) multiplicities."""
    values = values.double()
    draws = (weights @ values.float()) / weights.shape[1]
    return around(float(values.mean()), draws, low, high)


def normal(estimate: float, stderr: float) -> Interval:
    """The interval of an estimate whose standard error is known."""
    return estimate - NORMAL_QUANTILE * stderr, estimate + NORMAL_QUANTILE * stderr
