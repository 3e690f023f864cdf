"""Which samples of a set a person should see: those nearest to training images, and those that convince least."""

from __future__ import annotations

from torch import Tensor

from components.evaluation.features import Features
from components.evaluation.set_figures import Real
from components.metrics.classes import confidence
from components.metrics.neighbours import nearest

NEIGHBOUR_PICTURES, FAILURE_PICTURES = 10, 20


def closest_to_training(features: Features, kept: int, real: Real) -> tuple[Tensor, Tensor]:
    """The samples that come closest to a training image, closest first, and those training images: both rows."""
    rows, distances = nearest(features.vectors[:kept], real.train)
    closest = distances[:, 0].argsort(stable=True)[:NEIGHBOUR_PICTURES]
    return closest, rows[closest, 0]


def least_convincing(features: Features, kept: int, labels: Tensor) -> Tensor:
    """Rows of the samples that the judge believes least to show their class, worst first."""
    return confidence(features.judged[:kept], labels[:kept]).argsort(stable=True)[:FAILURE_PICTURES]
