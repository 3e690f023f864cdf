"""All figures of one set of images against one reference set, under one extractor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.errors import DataError
from components.metrics.frechet import Moments, frechet_distance, frechet_interval
from components.metrics.kernel import kernel_distance
from components.metrics.neighbours import Manifold, coverage, density, share_inside
from components.metrics.protocol import EvaluateConfig


@dataclass(frozen=True)
class Reference:
    """The real images' side of every figure, computed once."""

    moments: Moments
    manifold: Manifold

    @staticmethod
    def of(features: Tensor, config: EvaluateConfig) -> Reference:
        """Of features (N, D). Raises DataError if there are too few images for the protocol."""
        if len(features) <= config.neighbours:
            raise DataError(
                f"reference split: {len(features)} images; expected more than evaluate.neighbours ({config.neighbours})"
            )
        return Reference(Moments.of(features), Manifold.of(features, config.neighbours))


def quality(
    features: Tensor, reference: Reference, config: EvaluateConfig, labels: Tensor | None = None
) -> dict[str, float | list[float]]:
    """Figures of features (N, D) against the reference; a function of its arguments. `labels`: (N,) int64 classes that
    the images were asked for, None if nobody asked.

    frechet_distance and its 95% interval, kid and its standard error: lower is better. precision, recall, coverage in
    [0, 1], density from 0: higher is better.
    """
    if len(features) <= config.neighbours:
        raise DataError(f"{len(features)} images; expected more than evaluate.neighbours ({config.neighbours})")
    generator = torch.Generator().manual_seed(config.seed)
    interval = frechet_interval(features, reference.moments, generator, strata=labels, resamples=config.resamples)
    kid, kid_stderr = kernel_distance(features, reference.manifold.features)
    return {
        "frechet_distance": frechet_distance(Moments.of(features), reference.moments),
        "frechet_interval": list(interval),
        "kid": kid,
        "kid_stderr": kid_stderr,
        "precision": share_inside(features, reference.manifold),
        "recall": share_inside(reference.manifold.features, Manifold.of(features, config.neighbours)),
        "density": density(features, reference.manifold, config.neighbours),
        "coverage": coverage(features, reference.manifold),
    }
