"""Real images measured as samples are: as many, with the classes that samples are asked for, many times over. What a
perfect sampler would get, and how far chance moves it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from components.metrics import intervals
from components.metrics.figures import Definition, Figures, named
from components.metrics.frechet import Moments, frechet_distance

HELD_OUT_DISTANCE = Definition(
    name="held_out_distance",
    label="held-out against held-out",
    explanation="Fréchet distance from one half of the held-out images to the other",
    kind="distance",
    better=None,
)
TRAINING_DISTANCE = Definition(
    name="training_distance",
    label="training against held-out",
    explanation="Fréchet distance from as many training images, of the same classes, to the same half",
    kind="distance",
    better=None,
)
TRAINING_BIAS = Definition(
    name="training_bias",
    label="bias of the training images",
    explanation="training less held-out; what the extractor's having seen the training images adds to their distance",
    kind="distance",
    better=None,
)


def drawn_rows(wanted: Tensor | None, labels: Tensor | None, total: int, count: int, seed: int) -> Tensor:
    """Rows, without repetition, of `count` of `total` images at random, or of as many of each class as `wanted`
    (count,) holds: `labels` (total,) are the images' own. Fewer where there are not as many. A function of its seed."""
    generator = torch.Generator().manual_seed(seed)
    if wanted is None or labels is None:
        return torch.randperm(total, generator=generator)[:count]
    found = []
    for label, number in zip(*wanted.unique(return_counts=True), strict=True):
        members = torch.nonzero(labels == label).flatten()
        found.append(members[torch.randperm(len(members), generator=generator)[:number]])
    return torch.cat(found)


def over_draws(draws: Iterable[Figures]) -> Figures:
    """The mean of each figure that all draws have, with the interval that 95% of the draws lie in."""
    draws = list(draws)
    found = []
    for name, figure in draws[0].items():
        if all(name in figures for figures in draws):
            values = torch.tensor([figures[name].value for figures in draws], dtype=torch.float64)
            low, high = intervals.quantiles(values).tolist()
            found.append(figure.definition.figure(values.mean(), (low, high)))
    return named(*found)


def training_bias(
    train: Tensor, train_labels: Tensor | None, held_out: Tensor, labels: Tensor | None, draws: int, seed: int
) -> Figures:
    """held_out_distance, training_distance and training_bias of features: training (N, D) and held-out (M, D), with
    their classes (N,) and (M,) or None, over `draws` random halves; empty of fewer than 4 held-out images."""
    if len(held_out) < 4:
        return {}
    found = []
    halves = intervals.parts(len(held_out), 2, draws, torch.Generator().manual_seed(seed), labels) > 0
    for draw, (one, other) in enumerate(halves):
        wanted = None if labels is None else labels[one]
        seen = train[drawn_rows(wanted, train_labels, len(train), int(one.sum()), seed + draw)]
        if len(seen) < 2:
            return {}
        half = Moments.of(held_out[other])
        unseen, training = (frechet_distance(Moments.of(part), half) for part in (held_out[one], seen))
        found.append(
            named(
                HELD_OUT_DISTANCE.figure(unseen),
                TRAINING_DISTANCE.figure(training),
                TRAINING_BIAS.figure(training - unseen),
            )
        )
    return over_draws(found)
