"""95% intervals: how far another set of samples would move a figure, the real images that it is held against unchanged.

Two ways. The bootstrap (Efron and Tibshirani 1993, chapter 13) resamples with repetition; a resampled set repeats
images, so a distance's bias is shifted in every resample alike, and the quantiles are moved to lie around the figure
itself. Figures that count which real images are hit depend on how many different samples there are, and repetition
hides that; they take the spread between disjoint parts of the set, which hold no image twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL = 0.95
NORMAL_QUANTILE = 1.959964  # of LEVEL, two-sided
SPLITS = 60  # of a set into parts
_FEW = 4  # likewise, where no interval is asked for
Interval = tuple[float, float]


@dataclass(frozen=True)
class Resampling:
    """How a set of N samples is taken apart for its intervals. `rows`: (R, N) int64, which images each resample holds;
    R is 0 where no intervals are asked for. `halves`: (S, 2, N) and `quarters`: (S, 4, N) float32, 1 where an image is
    in a part of a split."""

    rows: Tensor
    halves: Tensor
    quarters: Tensor

    @staticmethod
    def of(count: int, resamples: int, seed: int, strata: Tensor | None = None) -> Resampling:
        """Draws for a set of `count`; `strata` as in `resampled_rows`."""
        generator = torch.Generator().manual_seed(seed)
        rows = resampled_rows(count, resamples, generator, strata)
        splits = SPLITS if resamples else _FEW
        halves, quarters = (parts(count, number, splits, generator, strata) for number in (2, 4))
        return Resampling(rows, halves, quarters)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        return self.halves, self.quarters

    @property
    def weights(self) -> Tensor:
        """(R, N) float32 multiplicities of the images in each resample."""
        return multiplicities(self.rows, self.halves.shape[-1])


def resampled_rows(count: int, resamples: int, generator: torch.Generator, strata: Tensor | None = None) -> Tensor:
    """(resamples, count) int64: which images each resample holds. `strata` (count,) int64 are labels that were asked
    for and not drawn; every resample keeps the number of each."""
    drawn = [m[torch.randint(len(m), (resamples, len(m)), generator=generator)] for m in _members(count, strata)]
    return torch.cat(drawn, dim=1)


def parts(count: int, number: int, splits: int, generator: torch.Generator, strata: Tensor | None = None) -> Tensor:
    """(splits, number, count) float32: which images are in each of the disjoint parts of each random split. Parts are
    as equal as they can be, all in all and in every stratum."""
    stratum = torch.zeros(count, dtype=torch.int64) if strata is None else strata.unique(return_inverse=True)[1]
    # dealt out in turn, one stratum after the other: with a turn for each, all would leave their odd ones to one part
    turns = torch.rand(splits, int(stratum.max()) + 1, generator=generator).argsort(1)[:, stratum]
    order = (turns + torch.rand(splits, count, generator=generator, dtype=torch.float64)).argsort(1)
    found = torch.zeros(splits, number, count)
    found[torch.arange(splits)[:, None], torch.arange(count) % number, order] = 1
    return found


def _members(count: int, strata: Tensor | None) -> list[Tensor]:
    strata = torch.zeros(count, dtype=torch.int64) if strata is None else strata
    return [torch.nonzero(strata == label).flatten() for label in strata.unique()]


def multiplicities(rows: Tensor, count: int) -> Tensor:
    """(R, count) float32: how often each image is in each resample. `rows` as `resampled_rows` gives them."""
    return torch.zeros(len(rows), count).scatter_add_(1, rows, torch.ones(rows.shape))


def around(estimate: float, draws: Tensor, low: float = -torch.inf, high: float = torch.inf) -> Interval | None:
    """The interval of a figure from its values (R,) on resamples, within the figure's own range; None without any."""
    if not len(draws):
        return None
    left, right = (quantiles(draws) - draws.double().mean() + estimate).clamp(low, high).tolist()
    return left, right


def quantiles(draws: Tensor) -> Tensor:
    """(2,) float64 the ends between which LEVEL of the values (R,) lie."""
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    return draws.double().quantile(tails)


def of_mean(values: Tensor, weights: Tensor, low: float = -torch.inf, high: float = torch.inf) -> Interval | None:
    """The interval of the mean of values (N,), which is nearly normal; None without resamples. `weights`: (R, N)
    multiplicities."""
    if not len(weights):
        return None
    draws = (weights.double() @ values.double()) / weights.shape[1]
    return normal(float(values.double().mean()), float(draws.std()), low, high)


def normal(estimate: float, stderr: float, low: float = -math.inf, high: float = math.inf) -> Interval:
    """The interval of an estimate whose standard error is known, within the figure's own range."""
    ends = (estimate - NORMAL_QUANTILE * stderr, estimate + NORMAL_QUANTILE * stderr)
    left, right = (min(max(end, low), high) for end in ends)
    return left, right


def of_share(share: float, count: float) -> Interval:
    """The interval of a share of `count` independent trials by Wilson's score (Wilson 1927), which has a width where
    all or none hit."""
    squared = NORMAL_QUANTILE**2 / count
    middle = (share + squared / 2) / (1 + squared)
    reach = math.sqrt(squared * (share * (1 - share) + squared / 4)) / (1 + squared)
    return min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))


def of_spread_share(share: float, variance: float, count: int) -> Interval:
    """The same of a share of `count` trials that hang together, whose variance is known: of as many independent ones as
    vary so; of all where none vary."""
    return of_share(share, share * (1 - share) / variance if variance > 0 and 0 < share < 1 else count)


def part_variance(values: Tensor) -> float:
    """The variance of a figure between sets as large as a part, from its values (S, parts) on disjoint parts: unbiased,
    because parts of one split share no image."""
    return float(values.double().var(1).mean())


def grown_variance(of_halves: Tensor, of_quarters: Tensor) -> float:
    """The variance of a figure on the whole set from its values on halves (S, 2) and quarters (S, 4): it goes on to
    change with the number of samples as it does from quarters to halves, by a quarter at least and never upwards."""
    half, quarter = part_variance(of_halves), part_variance(of_quarters)
    return half * min(max(half / quarter, 0.25), 1.0) if quarter > 0 else half
