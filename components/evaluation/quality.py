"""All figures of one set of images against the real ones, under one extractor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.errors import DataError
from components.evaluation.protocol import EvaluateConfig
from components.metrics import classes, intervals
from components.metrics.frechet import Moments, frechet_distance, frechet_interval
from components.metrics.kernel import cmmd, kernel_distance
from components.metrics.modes import mode_coverage
from components.metrics.neighbours import Inside, Manifold

Figures = dict[str, float | list[float] | str | None]
CLASS_FIGURES = (  # of `class_quality`
    "inception_score",
    "inception_score_interval",
    "classes_hit",
    "label_entropy",
    "label_agreement",
    "label_agreement_interval",
)


@dataclass(frozen=True)
class Reference:
    """The real images' side of every figure, computed once. `features` (N, D) are all of them, `manifold` is of at most
    evaluate.neighbour_images."""

    moments: Moments
    manifold: Manifold
    features: Tensor

    @staticmethod
    def of(features: Tensor, config: EvaluateConfig, moments: Moments | None = None) -> Reference:
        """Of features (N, D), whose moments may be known. Raises DataError if there are too few images."""
        _refuse_too_few(features, config, "reference split: ")
        manifold = Manifold.of(some(features, config).double(), config.neighbours)
        return Reference(moments or Moments.of(features), manifold, features)


def some(values: Tensor, config: EvaluateConfig) -> Tensor:
    """The rows that figures of quadratic cost look at: all, or evaluate.neighbour_images of them evenly spread."""
    count = min(len(values), config.neighbour_images)
    return values[torch.arange(count) * len(values) // count]


def _refuse_too_few(features: Tensor, config: EvaluateConfig, what: str = "") -> None:
    if len(features) <= config.neighbours:
        raise DataError(f"{what}{len(features)} images; expected more than evaluate.neighbours ({config.neighbours})")


def quality(features: Tensor, reference: Reference, config: EvaluateConfig, labels: Tensor | None = None) -> Figures:
    """Figures of features (N, D) against the reference; a function of its arguments. `labels`: (N,) int64 classes that
    the images were asked for, None if nobody asked.

    frechet_distance, kid, cmmd: lower is better. precision, recall, coverage in [0, 1], density from 0: higher is
    better. Each has its 95% interval beside it, the kernel distances their standard errors too.
    """
    _refuse_too_few(features, config)
    rows = _rows(len(features), config, labels)
    near = some(features, config)
    inside = Inside.of(near, reference.manifold, config.neighbours)
    weights = intervals.multiplicities(
        _rows(len(near), config, None if labels is None else some(labels, config)), len(near)
    )
    found: Figures = {
        "frechet_distance": frechet_distance(Moments.of(features), reference.moments),
        "frechet_interval": list(frechet_interval(features, reference.moments, rows)),
    }
    real = some(reference.features, config).double()
    for name, (value, stderr) in {"kid": kernel_distance(near, real), "cmmd": cmmd(near, real)}.items():
        found |= {name: value, f"{name}_stderr": stderr, f"{name}_interval": list(intervals.normal(value, stderr))}
    for name, values in {"precision": inside.precise(), "density": inside.dense()}.items():
        high = 1.0 if name == "precision" else torch.inf
        found |= {name: float(values.double().mean())}
        found |= {f"{name}_interval": list(intervals.of_mean(values, weights, 0.0, high))}
    for name, values, draws in (
        ("recall", inside.recalled(), inside.resampled_recall(weights)),
        ("coverage", inside.covered(), inside.resampled_coverage(weights)),
    ):
        value = float(values.double().mean())
        found |= {name: value, f"{name}_interval": list(intervals.around(value, draws, 0.0, 1.0))}
    return found


def class_quality(logits: Tensor, config: EvaluateConfig, labels: Tensor | None = None) -> Figures:
    """Figures from a classifier's logits (N, num_classes): which classes come, how surely, and whether they are those
    asked for. label_agreement is None if nobody asked."""
    weights = intervals.multiplicities(_rows(len(logits), config, labels), len(logits))
    score = float(classes.inception_score(logits))
    drawn = classes.inception_score(logits, weights)
    hits = None if labels is None else logits.argmax(1) == labels
    return {
        "inception_score": score,
        "inception_score_interval": list(intervals.around(score, drawn, 1.0)),
        **mode_coverage(logits.argmax(1), logits.shape[1]),
        "label_agreement": None if hits is None else float(hits.double().mean()),
        "label_agreement_interval": None if hits is None else list(intervals.of_mean(hits, weights, 0.0, 1.0)),
    }


def _rows(count: int, config: EvaluateConfig, labels: Tensor | None) -> Tensor:
    generator = torch.Generator().manual_seed(config.seed)
    return intervals.resampled_rows(count, config.resamples, generator, labels)
