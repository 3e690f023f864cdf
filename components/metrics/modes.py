"""Mode coverage: does a sampler draw all that the data hold, or has it collapsed onto a part? And does a discriminator
know its training images by heart? Plain tensors in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from components.config import Strict
from components.metrics.figures import Definition, Figure, Figures, named, values

CLASSES_HIT = Definition(
    name="classes_hit",
    label="classes hit",
    column="Modes",
    group="labels",
    explanation="classes that come at least a tenth as often as if all came equally often",
    kind="count",
    better="higher",
)
LABEL_ENTROPY = Definition(
    name="label_entropy",
    label="label entropy",
    column="Label entropy",
    group="labels",
    explanation="how evenly the classes come; 1 if all come equally often",
    kind="score",
    better="higher",
)
CLASS_IMBALANCE = Definition(
    name="class_imbalance",
    label="class imbalance",
    column="Imbalance",
    group="labels",
    explanation="the share of images whose class would have to change for the real images' class balance",
    kind="share",
    better="lower",
)
NDB = Definition(
    name="ndb",
    label="NDB",
    explanation="the share of cells of the real images' features whose frequency differs among generated ones",
    kind="share",
    better="lower",
)


def mode_coverage(labels: Tensor, num_classes: int, least: float = 0.1) -> Figures:
    """classes_hit and label_entropy of the labels (N,) int64 that a classifier gives to samples.

    classes_hit: how many classes hold at least `least` of the share that they would have if all were equally likely,
    because a stray mistake of the classifier is no mode. label_entropy: of the histogram, in [0, 1]; 1 is uniform.
    """
    return coverage_of(class_shares(labels, num_classes), least)


def coverage_of(shares: Tensor, least: float = 0.1) -> Figures:
    """mode_coverage of labels that have these shares, (num_classes,)."""
    num_classes = len(shares)
    entropy = -torch.xlogy(shares, shares).sum() / math.log(num_classes)
    return named(
        CLASSES_HIT.figure((shares >= least / num_classes).sum()),
        LABEL_ENTROPY.figure(abs(float(entropy.clamp(0, 1)))),  # rounding may leave -0 or 1 + eps
    )


def class_shares(labels: Tensor, num_classes: int) -> Tensor:
    """(num_classes,) float64 shares of the classes among labels (N,) int64."""
    return torch.bincount(labels.cpu(), minlength=num_classes).double() / len(labels)


def imbalance_figure(labels: Tensor, real_shares: Tensor) -> Figure:
    """class_imbalance of labels (N,) int64 that a classifier gives to samples: the total variation distance of their
    shares from those that it gives to real images, (num_classes,)."""
    shares = class_shares(labels, len(real_shares))
    return CLASS_IMBALANCE.figure((shares - real_shares).clamp(min=0).sum())


def balancing_weights(labels: Tensor, real_shares: Tensor) -> Tensor:
    """(N,) float64 weights, 1 on average, that give labels (N,) int64 the real images' class shares (num_classes,), of
    the classes that come at all; all 1 where none of these comes."""
    shares = class_shares(labels, len(real_shares))
    weights = (real_shares / shares.clamp(min=1 / len(labels)))[labels.cpu()]
    return weights / weights.mean() if weights.sum() > 0 else torch.ones_like(weights)


def ndb(real: Tensor, fake: Tensor, bins: int, generator: torch.Generator, significance: float = 0.05) -> float:
    """The share of statistically different bins (Richardson and Weiss 2018, section 3), in [0, 1]; `significance` is
    what two samples of one distribution come to.

    The bins are the k-means cells of real features (N, D); of fake ones (M, D) the share in each cell is held against
    the real share by a two-sided test of two proportions. Raises ValueError if there are fewer features than bins.
    """
    if len(real) < bins:
        raise ValueError(f"{bins} bins need as many features, found {len(real)}")
    centres = kmeans(real.double(), bins, generator)
    n, m = len(real), len(fake)
    p = torch.bincount(_cell(real.double(), centres), minlength=bins).double() / n
    q = torch.bincount(_cell(fake.double(), centres), minlength=bins).double() / m
    pooled = (n * p + m * q) / (n + m)
    error = (pooled * (1 - pooled) * (1 / n + 1 / m)).sqrt()
    critical = math.sqrt(2) * torch.erfinv(torch.tensor(1 - significance, dtype=torch.float64))
    return float(((p - q).abs() > critical * error).double().mean())


def kmeans(points: Tensor, count: int, generator: torch.Generator, rounds: int = 50) -> Tensor:
    """Centres (count, D) of points (N, D): seeds by Arthur and Vassilvitskii 2007, section 2.2, then Lloyd's rounds."""
    first = torch.randint(len(points), (1,), generator=generator)
    centres = points[first]
    while len(centres) < count:
        squared = torch.cdist(points, centres).min(1).values.square()
        # points that all coincide with centres leave nothing to choose by
        chosen = torch.multinomial(squared + 1e-12, 1, generator=generator)
        centres = torch.cat([centres, points[chosen]])
    for _ in range(rounds):
        cells = _cell(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, cells, points)
        sizes = torch.bincount(cells, minlength=count)[:, None]
        moved = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _cell(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres).argmin(1)


class Floors(Strict):
    """Below any of these a sampler counts as collapsed. They are far below what a poor but varied one reaches."""

    classes: float = 0.6  # share of the classes that real images hit
    label_entropy: float = 0.6  # share of real images' own
    recall: float = 0.1


FLOORS = Floors()


def collapsed(
    figures: Mapping[str, float], num_classes: int, real_shares: Tensor | None = None, floors: Floors = FLOORS
) -> str | None:
    """Why the figures say that a sampler draws only a part of the data, in one line; None if they do not.

    Reads `classes_hit`, `label_entropy` and `recall`, those of them that are there. `real_shares`: (num_classes,) of
    the classes among real images, where they do not come equally often.
    """
    found, real = figures, {"classes_hit": num_classes, "label_entropy": 1.0}
    if real_shares is not None:
        real = values(coverage_of(real_shares))
    if found.get("classes_hit", math.inf) < floors.classes * real["classes_hit"]:
        return f"collapsed: draws {found['classes_hit']:.0f} of {real['classes_hit']:.0f} classes"
    if found.get("label_entropy", math.inf) < floors.label_entropy * real["label_entropy"]:
        return (
            f"collapsed: the entropy of its labels is {found['label_entropy']:.2f} of the most possible, that of real "
            f"images {real['label_entropy']:.2f}"
        )
    if found.get("recall", math.inf) < floors.recall:
        return f"collapsed: {found['recall']:.1%} of the real images lie among its samples (recall)"
    return None


def overfitted(figures: Mapping[str, float], gap: float = 0.3) -> str | None:
    """Why the figures say that a discriminator knows its training images by heart; None if they do not.

    Reads `accuracy_train` and `accuracy_held_out`, of `Family.validate`; `gap` is the largest difference that passes.
    """
    if not {"accuracy_train", "accuracy_held_out"} <= figures.keys():
        return None
    train, held_out = figures["accuracy_train"], figures["accuracy_held_out"]
    if train - held_out <= gap:
        return None
    return f"over-fitted: the discriminator takes {train:.0%} of training images for real, {held_out:.0%} of others"
