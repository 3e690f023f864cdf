"""Adversarial losses: functions of discriminator scores (logits), for either network.

Scores are (B,), or (B, S) from a discriminator that gives S scores a row; a loss is the mean over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["non_saturating", "hinge", "wasserstein", "least_squares", "relativistic"]


@dataclass(frozen=True)
class Loss:
    """`discriminator(real, fake, truth)`: `truth` is the target of real scores, below 1 under one-sided label smoothing
    (losses without targets ignore it). `generator(fake, real)`: `real` is given where `paired`, row by row.
    `realness(real, fake)`: scores of the real rows about the loss's decision boundary; above 0 means real.
    """

    discriminator: Callable[[Tensor, Tensor, float], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    realness: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False
    targets: bool = False


def bce(logits: Tensor, truth: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


def _squared(scores: Tensor, truth: float) -> Tensor:
    return 0.5 * (scores - truth).square().mean()


LOSSES: dict[LossName, Loss] = {
    # Goodfellow et al. 2014, equation 1, and section 3 for the generator
    "non_saturating": Loss(
        discriminator=lambda real, fake, truth: bce(real, truth) + bce(fake, 0.0),
        generator=lambda fake, real: bce(fake, 1.0),
        realness=lambda real, fake: real,
        targets=True,
    ),
    # Lim and Ye 2017; Zhang et al. 2019, equation 4
    "hinge": Loss(
        discriminator=lambda real, fake, truth: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        generator=lambda fake, real: -fake.mean(),
        realness=lambda real, fake: real,
    ),
    # Arjovsky et al. 2017, equation 2; only differences of scores mean something
    "wasserstein": Loss(
        discriminator=lambda real, fake, truth: fake.mean() - real.mean(),
        generator=lambda fake, real: -fake.mean(),
        realness=lambda real, fake: real - (real.mean(0) + fake.mean(0)) / 2,
    ),
    # Mao et al. 2017, equation 9: a = 0, b = c = 1
    "least_squares": Loss(
        discriminator=lambda real, fake, truth: _squared(real, truth) + _squared(fake, 0.0),
        generator=lambda fake, real: _squared(fake, 1.0),
        realness=lambda real, fake: real - 0.5,
        targets=True,
    ),
    # Jolicoeur-Martineau 2019, section 4.1, as Huang et al. 2024 pair rows (equation 2)
    "relativistic": Loss(
        discriminator=lambda real, fake, truth: F.softplus(fake - real).mean(),
        generator=lambda fake, real: F.softplus(real - fake).mean(),
        realness=lambda real, fake: real - (real.mean(0) + fake.mean(0)) / 2,
        paired=True,
    ),
}


def best(fake: Tensor, real: Tensor | None, share: float) -> tuple[Tensor, Tensor | None]:
    """The `share` of rows that the discriminator takes for most real, from which a generator learns (Sinha et al.
    2020, algorithm 1); at least one row. `real`: their partners, if any."""
    count = max(1, round(share * len(fake)))
    chosen = fake.detach().reshape(len(fake), -1).mean(1).topk(count).indices
    return fake[chosen], None if real is None else real[chosen]
